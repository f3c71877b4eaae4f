from __future__ import annotations

import json

import pytest

from benchmarks import figures

ROW = {
    "implementation": "native",
    "workload": "loss",
    "passes": "forward+backward",
    "direction": "off",
    "batch": 128,
    "frames": 12,
    "dim": 512,
    "dtype": "float32",
    "status": "ok",
    "median_seconds": 0.25,
    "pairs_per_second": 65536.0,
    "floor_fraction": 0.5,
    "peak_growth_bytes": 2**20,
    "relative_error": 1e-7,
    "gradient_error": 2e-6,
    "seconds": [0.25],
    "times_published": 20.0,
}
SLOW = {**ROW, "implementation": "published", "status": "too long", "predicted_seconds": 5.0}
ENVIRONMENT = {"packages": {"torch": "2.15"}}
TEXT = "before\n<!-- results: {} -->\nstale\n<!-- end of results -->\nafter\n"


def cells_of(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


@pytest.fixture
def results(tmp_path):
    (tmp_path / "here").mkdir()
    document = {
        "command": "python -m benchmarks.similarity",
        "commit": "0123456789",
        "environment": ENVIRONMENT,
        "device": "2 cores (a CPU)",
        "results": [SLOW, ROW],
        "growth": [],
    }
    (tmp_path / "here" / "similarity.json").write_text(json.dumps(document))
    return tmp_path


def test_tables_replace_what_was_there(results):
    text = figures.render(TEXT.format("times here/similarity.json direction=off"), results)
    assert "stale" not in text
    cells = ["128, without `direction`", "too long, ≈ 5.00 s", "250 ms, once (20.0 ×)"]
    assert cells in cells_of(text)
    assert "`python -m benchmarks.similarity`; 2 cores (a CPU), torch 2.15, commit 0123456" in text
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert figures.render(text, results) == text


def test_rows_of_two_origins_say_which_is_whose(results):
    path = results / "here" / "similarity.json"
    document = json.loads(path.read_text())
    later = {"machine": "another CPU", "versions": "python 3.11, torch 2.16", "commit": None}
    document["results"][1] |= {**later, "command": "python -m again"}
    path.write_text(json.dumps(document))
    text = figures.render(TEXT.format("times here/similarity.json"), results)
    first = "published: `python -m benchmarks.similarity`; 2 cores (a CPU), torch 2.15, commit"
    assert f"{first} 0123456\n" in text
    assert "native: `python -m again`; another CPU, torch 2.16, commit unknown\n" in text


def test_choices_leave_rows_out(results):
    what = "profile here/similarity.json implementation=native"
    text = figures.render(TEXT.format(what), results)
    assert "published" not in text
    time = ["250 ms, once (20.0 ×)", "one call", "65.5 k", "50 %"]
    assert ["128", "native", *time, "1.00 MiB", "1e-07", "2e-06"] in cells_of(text)


def test_missing_results_are_said_to_be_missing(results):
    assert "No results" in figures.render(TEXT.format("times there/similarity.json"), results)


def test_unknown_tables_are_an_error(results):
    with pytest.raises(ValueError, match="no table 'pie'"):
        figures.render(TEXT.format("pie here/similarity.json"), results)


def test_the_documents_say_what_the_committed_results_say(capsys):
    assert figures.main(["--check"]) == 0, capsys.readouterr().out


MEASURED = sorted(path.parent.name for path in figures.RESULTS.glob("*/scaling.json"))


@pytest.mark.parametrize("machine", MEASURED)
def test_committed_memory_grows_as_the_documents_say(machine):
    document = json.loads((figures.RESULTS / machine / "scaling.json").read_text())
    exponents = {
        fit["implementation"]: fit["memory_exponent"]
        for fit in document["growth"]
        if fit["direction"] == "off"
    }
    assert exponents["native"] < 1.2
    assert exponents["eager"] < 1.3
    assert exponents["published"] > 1.7
