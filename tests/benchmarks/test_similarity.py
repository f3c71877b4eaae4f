from __future__ import annotations

import json

import pytest
import torch

from benchmarks import memory, profiler, similarity
from benchmarks.cases import Case
from benchmarks.presets import PRESETS, Plan, plans
from benchmarks.profiler import Profiler

TINY = ["--batch", "6", "12", "--frames", "3", "--dim", "16", "--row-seconds=0", "--device=cpu"]
SMALL = Case("loss", "forward+backward", "off", 6, 3, 16)


@pytest.fixture(autouse=True)
def _quick_bandwidth(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiler, "copy_bandwidth", lambda device: 1e10)


def profile(case: Case, names: tuple[str, ...], **changes) -> dict[str, dict]:
    plan = Plan((), (), names=names, row_seconds=0, **changes)
    rows = Profiler(plan, torch.device("cpu"), lambda what: None, float("inf")).rows_of(case)
    return {row["implementation"]: row for row in rows}


def test_the_command_writes_rows_tables_and_a_plot(tmp_path, capsys):
    files = {kind: tmp_path / f"out.{kind}" for kind in ("json", "csv", "png")}
    names = ["published", "published, chunked", "eager"]
    options = [f"--{kind}={files[kind]}" for kind in ("json", "csv")]
    similarity.main([*TINY, "--implementations", *names, *options, "--plot", str(files["png"])])
    document = json.loads(files["json"].read_text())
    assert {"command", "commit", "environment", "memory_measured_by"} <= document.keys()
    rows = document["results"]
    # 3 kinds, 2 batches, 3 names
    assert len(rows) == 18
    assert {row["status"] for row in rows} == {"ok"}
    row = rows[-1]
    assert row["lower_quartile_seconds"] <= row["median_seconds"] <= row["upper_quartile_seconds"]
    assert row["floor_fraction"] == pytest.approx(row["floor_seconds"] / row["median_seconds"])
    assert row["relative_error"] < 1e-4
    assert row["times_published"] > 0
    assert {fit["implementation"] for fit in document["growth"]} == set(names)
    assert len(files["csv"].read_text().splitlines()) == 19
    assert files["png"].stat().st_size > 10_000
    printed = capsys.readouterr().out
    assert "vs published" in printed
    similarity.main(["--show", str(files["json"])])
    assert capsys.readouterr().out.strip() == printed.strip()


def test_what_would_take_too_long_is_reported_with_its_time():
    row = profile(Case("loss", "forward+backward", "off", 64, 3, 16), ("eager",), call_limit=1e-4)
    assert row["eager"]["status"] == "too long"
    assert row["eager"]["predicted_seconds"] > 1e-4


def test_what_would_not_fit_is_reported(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(memory, "available", lambda device: 1)
    monkeypatch.setattr(memory, "peak_growth", lambda call, device: (call(), 10**6)[1])
    row = profile(Case("loss", "forward+backward", "off", 64, 3, 16), ("eager",))["eager"]
    assert row["status"] == "out of memory"
    assert row["predicted_bytes"] > 10**6


def test_an_allocator_that_gives_up_is_reported(monkeypatch: pytest.MonkeyPatch):
    def give_up(*arguments):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(Profiler, "_time", lambda *arguments: None)
    monkeypatch.setattr(memory, "peak_growth", give_up)
    assert profile(SMALL, ("eager",))["eager"]["status"] == "out of memory"


def test_a_wrong_implementation_is_not_timed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("benchmarks.accuracy.Oracle.error_of", lambda *arguments: 0.5)
    row = profile(SMALL, ("eager",))["eager"]
    assert row["status"] == "wrong"
    assert "median_seconds" not in row


def test_the_budget_ends_the_run():
    plan = Plan((), (), names=("eager",))
    late = Profiler(plan, torch.device("cpu"), lambda what: None, 0.0)
    assert [row["status"] for row in late.rows_of(SMALL)] == ["not run"]


def test_memory_of_a_call_is_what_it_holds_at_once():
    def call() -> None:
        for _ in range(3):
            torch.ones(2**23)

    growth = memory.peak_growth(call, torch.device("cpu"))
    if growth is None:
        pytest.skip("resident memory is unknown here")
    # The kernel counts a little behind.
    assert 0.95 * 2**25 < growth < 1.6 * 2**25


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("preset", PRESETS)
def test_presets_have_cases(preset, device):
    assert all(plan.cases() for plan in plans(preset, device))


def test_choices_that_exclude_each_other_are_an_error(capsys):
    with pytest.raises(SystemExit):
        similarity.main(["--workload", "similarity", "--direction", "exact"])
    assert "nothing is left" in capsys.readouterr().err
