from __future__ import annotations

import pytest

from benchmarks.rows import compare_with, growth_of

SERIES = {
    "workload": "loss",
    "passes": "forward",
    "direction": "off",
    "frames": 3,
    "dim": 16,
    "dtype": "float32",
    "status": "ok",
}


def row(name: str, batch: int, seconds: float, peak: int = 0) -> dict:
    own = {"batch": batch, "median_seconds": seconds, "peak_growth_bytes": peak}
    return {"implementation": name, **SERIES, **own}


def test_growth_over_three_batches():
    (fit,) = growth_of([row("eager", batch, batch**2, batch**3) for batch in (8, 16, 64)])
    assert fit["batches"] == [8, 16, 64]
    assert fit["time_exponent"] == pytest.approx(2)
    assert fit["memory_exponent"] == pytest.approx(3)


def test_two_batches_tell_no_growth():
    assert growth_of([row("eager", batch, batch**2) for batch in (8, 16)]) == []


def test_ratios_to_one_implementation():
    rows = [row("published", 8, 6.0), row("native", 8, 2.0)]
    compare_with("published", rows)
    assert [r["times_published"] for r in rows] == [1.0, 3.0]
    alone = [row("native", 8, 2.0)]
    compare_with("published", alone)
    assert "times_published" not in alone[0]
