from __future__ import annotations

import json

import pytest

from benchmarks import serve


@pytest.mark.slow
def test_all_is_answered(tmp_path, capsys):
    pytest.importorskip("fastapi")
    pytest.importorskip("uvicorn")
    path = tmp_path / "serve.json"
    serve.main(["--videos", "3", "--clients", "3", "--seconds", "1", "--json", str(path)])
    rows = json.loads(path.read_text())["results"]
    assert [row["request"] for row in rows] == ["search", "thumbnail", "video"]
    for row in rows:
        assert row["errors"] == 0
        assert row["count"] >= 3
        assert 0 < row["median_seconds"] <= row["p95_seconds"] <= row["longest_seconds"]
    assert "| thumbnail |" in capsys.readouterr().out
