"""The rows of benchmarks.similarity as tables, one for each series of batch sizes."""

from __future__ import annotations

from typing import Any

from benchmarks.cases import DIRECTION_SAMPLES, Case
from benchmarks.profiler import OK, UNAVAILABLE, Row
from benchmarks.tables import bytes_text, print_table, rate_text, seconds_text, times_text

COLUMNS = (
    "batch",
    "<implementation",
    "median",
    "quartiles",
    "pairs/s",
    "vs published",
    "of floor",
    "memory",
    "error",
)
_GROWTH_COLUMNS = ("<implementation", "time ~ B^", "memory ~ B^", "<batches")


def case_of(row: Row) -> Case:
    """The case that a row belongs to."""
    return Case(**{name: row[name] for name in Case.__dataclass_fields__})


def series_of(rows: list[Row]) -> dict[str, list[Row]]:
    """Rows by title of their series, in order of appearance."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(case_of(row).title, []).append(row)
    return groups


def print_tables(rows: list[Row], fits: list[Row]) -> None:
    """Print every series, and how it grows."""
    for title, members in series_of(rows).items():
        if "sampled" in title:
            title += f" ({DIRECTION_SAMPLES} videos per text)"
        print_table(title, COLUMNS, _lines(members))
        _print_reasons(members)
        own = [fit for fit in fits if _same_series(fit, members[0])]
        if own:
            print_table("growth with the batch size B", _GROWTH_COLUMNS, [_fit(f) for f in own])
        print()


def _lines(rows: list[Row]) -> list[list[str]]:
    lines: list[list[str]] = []
    batch = None
    for row in rows:
        if row["status"] == UNAVAILABLE:
            continue
        if batch is not None and row["batch"] != batch:
            lines.append([])
        lines.append(_line(row, row["batch"] != batch))
        batch = row["batch"]
    return lines


def _line(row: Row, first: bool) -> list[str]:
    head = [str(row["batch"]) if first else "", row["implementation"]]
    error = f"{row['relative_error']:.0e}" if row.get("relative_error") is not None else ""
    if row["status"] != OK:
        time, space = row.get("predicted_seconds"), row.get("predicted_bytes")
        time = f"≈ {seconds_text(time)}" if time else ""
        space = f"≈ {bytes_text(space)}" if space else ""
        return [*head, time, row["status"], "", "", "", space, error]
    quartiles = (row["lower_quartile_seconds"], row["upper_quartile_seconds"])
    times, peak = row.get("times_published"), row.get("peak_growth_bytes")
    return [
        *head,
        seconds_text(row["median_seconds"]),
        " – ".join(seconds_text(value) for value in quartiles),
        rate_text(row["pairs_per_second"]),
        times_text(times) if times else "",
        f"{100 * row['floor_fraction']:.0f} %",
        bytes_text(peak) if peak is not None else "unknown",
        error,
    ]


def _print_reasons(rows: list[Row]) -> None:
    """Why rows have no time, one line for each reason."""
    batches: dict[tuple[str, str], list[int]] = {}
    for row in rows:
        if row["status"] != OK:
            absent = row["status"] == UNAVAILABLE
            what = row["reason"] if absent else f"{row['status']}: {row['reason']}"
            batches.setdefault((row["implementation"], what), []).append(row["batch"])
    for (name, what), sizes in batches.items():
        print(f"{name}, B = {', '.join(map(str, sizes))}: {what}")


def _fit(fit: dict[str, Any]) -> list[str]:
    exponents = (fit["time_exponent"], fit["memory_exponent"])
    texts = ["unknown" if value is None else f"{value:.2f}" for value in exponents]
    return [fit["implementation"], *texts, ", ".join(map(str, fit["batches"]))]


def _same_series(fit: dict[str, Any], row: Row) -> bool:
    keys = ("workload", "passes", "direction", "frames", "dim", "dtype")
    return all(fit[key] == row[key] for key in keys)
