from __future__ import annotations

import json

import pytest

from benchmarks import search


@pytest.mark.slow
def test_all_is_measured(tmp_path, capsys):
    path = tmp_path / "search.json"
    sizes = ["--segments", "200", "300", "--dim", "64", "--frames", "3", "--queries", "3"]
    sizes += ["--models", "tiny", "--video_seconds", "4"]
    search.main([*sizes, "--json", str(path), "--folder", str(tmp_path)])
    rows = json.loads(path.read_text())["results"]
    tasks = [row["task"] for row in rows]
    assert tasks == ["recall"] * 3 + ["query"] * 2 + ["indexing"]
    assert rows[2]["recall"] == 1.0  # all are candidates
    assert 0 < rows[0]["recall"] <= rows[1]["recall"]
    assert all(row["exact_seconds"] > 0 for row in rows[3:5])
    assert rows[5]["bytes_per_hour"] > 0
    assert " K = 200 |" in capsys.readouterr().out
