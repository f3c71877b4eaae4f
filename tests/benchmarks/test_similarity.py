from __future__ import annotations

import argparse
import json
from dataclasses import asdict, replace

import pytest
import torch

from benchmarks import floor, memory, profiler, similarity, timing
from benchmarks.accuracy import Errors, Oracle
from benchmarks.cases import PSIS, Case
from benchmarks.floor import Floor
from benchmarks.presets import LOSS_OFF, PRESETS, Plan, add_arguments, chosen_plans, plans
from benchmarks.profiler import Profiler
from benchmarks.timing import Sample

TINY = ["--batch", "6", "8", "12", "--direction=off", "--frames=3", "--dim=16"]
TINY += ["--row-seconds=0", "--device=cpu"]
SMALL = Case("loss", "forward+backward", "off", 6, 3, 16)


@pytest.fixture(autouse=True)
def _quick_bandwidth(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiler, "copy_bandwidth", lambda device: 1e10)


def profile(case: Case, names: tuple[str, ...], **changes) -> dict[str, dict]:
    plan = Plan((), (), names=names, row_seconds=0, **changes)
    rows = Profiler(plan, torch.device("cpu"), lambda what: None).rows_of(case)
    return {row["implementation"]: row for row in rows}


@pytest.mark.slow
def test_the_command_writes_rows_tables_and_a_plot(tmp_path, capsys):
    files = {kind: tmp_path / f"out.{kind}" for kind in ("json", "csv", "png")}
    names = ["published", "published, chunked", "eager"]
    options = [f"--{kind}={files[kind]}" for kind in ("json", "csv")]
    similarity.main([*TINY, "--implementations", *names, *options, "--plot", str(files["png"])])
    document = json.loads(files["json"].read_text())
    assert {"command", "commit", "environment", "memory_measured_by"} <= document.keys()
    rows = document["results"]
    # 2 kinds, 3 batches, 3 names
    assert len(rows) == 18
    assert {row["status"] for row in rows} == {"ok"}
    row = rows[-1]
    assert row["lower_quartile_seconds"] <= row["median_seconds"] <= row["upper_quartile_seconds"]
    assert row["floor_fraction"] == pytest.approx(row["floor_seconds"] / row["median_seconds"])
    assert row["relative_error"] < 1e-4
    assert row["gradient_error"] is None
    assert rows[0]["gradient_error"] < 1e-4
    assert {"machine", "versions", "commit", "command"} <= row.keys()
    assert row["times_published"] > 0
    assert {fit["implementation"] for fit in document["growth"]} == set(names)
    assert len(files["csv"].read_text().splitlines()) == 19
    assert files["png"].stat().st_size > 10_000
    printed = capsys.readouterr().out
    assert "times faster than the published" in printed
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
    monkeypatch.setattr(Oracle, "errors_of", lambda *arguments: Errors(1e-9, 0.5))
    row = profile(SMALL, ("eager",))["eager"]
    assert row["status"] == "wrong"
    assert "median_seconds" not in row


def test_the_budget_ends_the_run():
    assert profile(SMALL, ("eager",), budget=-1)["eager"]["status"] == "not run"


def test_the_cheap_ones_are_measured_where_time_is_short(monkeypatch: pytest.MonkeyPatch):
    slow = {"published": 100.0, "eager": 0.1}
    monkeypatch.setattr(
        Profiler,
        "_look_ahead",
        lambda self, name, case, row: row.update(
            predicted_seconds=slow[name], predicted_bytes=None
        ),
    )
    rows = profile(SMALL, ("published", "eager"), budget=60, call_limit=1000)
    assert {name: row["status"] for name, row in rows.items()} == {
        "published": "not run",
        "eager": "ok",
    }


def test_a_slow_call_is_its_own_sample(monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setattr(timing, "seconds_of", lambda call, device, calls=1: (call(), 19.0)[1])
    row = profile(SMALL, ("eager",), call_limit=100)["eager"]
    assert row["seconds"] == [19.0]
    similarity.print_results([row], [])
    assert "one call" in capsys.readouterr().out


def test_memory_of_a_call_is_what_it_holds_at_once():
    def call() -> None:
        for _ in range(3):
            torch.ones(2**26)

    growth = memory.peak_growth(call, torch.device("cpu"))
    if growth is None:
        pytest.skip("resident memory is unknown here")
    # The kernel counts some megabytes behind.
    assert 0.9 * 2**28 < growth < 1.6 * 2**28


@pytest.mark.parametrize("psi", PSIS)
@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("preset", PRESETS)
def test_presets_have_cases(preset, device, psi):
    for plan in plans(preset, device, psi):
        assert {case.psi for case in plan.cases()} == {psi}


def test_another_network_is_measured_and_named(tmp_path, capsys):
    path = tmp_path / "similarity-gap_mlp.json"
    options = [*TINY, "--workload=loss", "--implementations", "published", "eager"]
    similarity.main([*options, "--psi=gap_mlp", f"--json={path}"])
    document = json.loads(path.read_text())
    assert {(row["psi"], row["status"]) for row in document["results"]} == {("gap_mlp", "ok")}
    assert {fit["psi"] for fit in document["growth"]} == {"gap_mlp"}
    printed = capsys.readouterr().out
    assert "loss, direction off, forward+backward; gap mlp, F = 3" in printed
    assert "B^" in printed


@pytest.mark.parametrize("passes", ["forward", "forward+backward"])
def test_the_floor_of_hidden_layers_is_their_products(passes, monkeypatch: pytest.MonkeyPatch):
    """One D × H product a pair forward, four in all; a second a multiply-add."""
    products: list[int] = []

    def count(left, right) -> None:
        products.append(left.shape[0] * left.shape[1] * right.shape[1])

    def seconds(call, device) -> float:
        products.clear()
        call()
        return float(sum(products))

    monkeypatch.setattr(torch, "mm", lambda left, right, out: count(left, right))
    monkeypatch.setattr(floor, "onednn_unavailable", lambda: "left out")
    monkeypatch.setattr(floor, "best_seconds", seconds)
    # Tiles that are no divisor of the number of pairs.
    monkeypatch.setattr(floor, "TILE_ELEMENTS", {"cpu": 16 * 5})
    case = Case("loss", passes, "off", 6, 3, 16, psi="gap_mlp")
    found = floor.measure_floor(case, torch.device("cpu"), 1e30)
    assert found.seconds == pytest.approx((4 if case.backward else 1) * 6**2 * 16**2)


@pytest.mark.parametrize(
    ("options", "kinds"),
    [
        ("--direction off --workload loss", [LOSS_OFF]),
        ("--preset scaling --direction off", [LOSS_OFF]),
        ("--direction sampled", [("loss", "forward+backward", "sampled")]),
        ("--passes forward --workload loss --direction off", [("loss", "forward", "off")]),
    ],
)
def test_what_is_asked_for_is_measured_once(options, kinds):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    changed = chosen_plans(parser.parse_args([*options.split(), "--batch", "8"]), "cpu")
    assert [(c.workload, c.passes, c.direction) for p in changed for c in p.cases()] == kinds


def test_choices_that_exclude_each_other_are_an_error(capsys):
    with pytest.raises(SystemExit):
        similarity.main(["--workload", "similarity", "--direction", "exact"])
    assert "nothing is left" in capsys.readouterr().err


def test_samples_that_others_disturbed_are_taken_again(monkeypatch: pytest.MonkeyPatch):
    # The first call, in which memory is measured; then three, the last disturbed to the end.
    shares = iter([0.0, 0.5, 0.0, 0.0, 0.5, 0.4, 0.5, 0.5])

    def sample(call, device, calls=1) -> Sample:
        call()
        share = next(shares)
        return Sample(1 + share, share)

    monkeypatch.setattr(profiler, "sample", sample)
    monkeypatch.setattr(timing, "sample", sample)
    monkeypatch.setattr(profiler, "measure_floor", lambda *arguments: Floor(1.0, 1.0, 0.0, 1, 1.0))
    row = profile(SMALL, ("eager",))["eager"]
    assert row["seconds"] == [1.0, 1.0, 1.4]
    assert row["contended_samples"] == 1


def test_what_was_not_measured_is_said_once(capsys):
    off = Case("loss", "forward+backward", "off", 64)
    reasons = {"triton": ("unavailable", "no GPU"), "native": ("not run", "no time")}
    rows = [
        {"implementation": name, **asdict(case), "status": status, "reason": reason}
        for case in (off, replace(off, direction="exact"), replace(off, batch=128))
        for name, (status, reason) in reasons.items()
    ]
    similarity.print_results(rows, [])
    printed = capsys.readouterr().out
    assert printed.count("triton: no GPU") == 1
    assert printed.count("B = 64, everyone: not run: no time") == 2
    assert printed.count("not run:") == 3
