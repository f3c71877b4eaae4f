from __future__ import annotations

import json

from benchmarks import queries


def test_all_forms_are_measured(tmp_path, capsys):
    path = tmp_path / "queries.json"
    sizes = ["--texts", "1", "3", "--videos", "70", "--frames", "3", "--dim", "32"]
    queries.main([*sizes, "--json", str(path)])
    rows = json.loads(path.read_text())["results"]
    forms = ["published", "from the frames", *queries.FORMS]
    assert [(row["form"], row["texts"]) for row in rows] == [(f, n) for f in forms for n in (1, 3)]
    for row in rows:
        assert row["seconds"] > 0
        assert row["relative_error"] < (1e-2 if "float16" in row["form"] else 1e-5)
    size = {row["form"]: row["bytes"] for row in rows}
    assert size["kept, compact"] < size["kept"]
    assert " 3 texts |" in capsys.readouterr().out
