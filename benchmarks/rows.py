"""A row: what one implementation did in one case; and what several rows say together."""

from __future__ import annotations

from typing import Any

from benchmarks import growth

Row = dict[str, Any]

OK, OUT_OF_MEMORY, TOO_LONG = "ok", "out of memory", "too long"
NOT_RUN, UNAVAILABLE, WRONG, FAILED = "not run", "unavailable", "wrong", "failed"

SERIES = ("workload", "passes", "direction", "frames", "dim", "dtype", "psi", "padding")
# A slope through two points is mostly noise.
FEWEST_FITTED = 3


class NotMeasuredError(Exception):
    """An implementation has no time in a case: status and reason."""

    def __init__(self, status: str, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason


def series_key(row: Row) -> tuple[object, ...]:
    """What rows of a series, and fits to them, have in common; older files lack the last ones."""
    return tuple(row.get(key) for key in SERIES)


def growth_of(rows: list[Row]) -> list[Row]:
    """Exponents of time and memory over the batch, for every series of three sizes or more."""
    series: dict[tuple[object, ...], list[Row]] = {}
    keys = ("implementation", *SERIES)
    for row in rows:
        if row["status"] == OK:
            series.setdefault((row["implementation"], *series_key(row)), []).append(row)
    fits = []
    for key, members in series.items():
        batches = [row["batch"] for row in members]
        if len(set(batches)) < FEWEST_FITTED:
            continue
        peaks = [row["peak_growth_bytes"] or 0 for row in members]
        fits.append(
            {
                **dict(zip(keys, key, strict=True)),
                "batches": batches,
                "time_exponent": growth.exponent(batches, [r["median_seconds"] for r in members]),
                "memory_exponent": growth.exponent(batches, peaks),
            }
        )
    return fits


def compare_with(name: str, rows: list[Row]) -> None:
    """Add the ratio to one implementation's time, measured in the same case and run."""
    published = next((row for row in rows if row["implementation"] == name), None)
    if published is None or published["status"] != OK:
        return
    for row in rows:
        if row["status"] == OK:
            row["times_published"] = published["median_seconds"] / row["median_seconds"]
