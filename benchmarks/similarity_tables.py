"""The rows of benchmarks.similarity as tables, one for each series of batch sizes."""

from __future__ import annotations

from typing import Any

from benchmarks.cases import DIRECTION_SAMPLES, Case
from benchmarks.rows import OK, SERIES, UNAVAILABLE, Row
from benchmarks.tables import (
    bytes_text,
    error_text,
    print_table,
    rate_text,
    seconds_text,
    times_text,
)

LEGEND = """\
One call with B texts and B videos, F frames each, D features.
  median        seconds of a call; with its quartiles, or how often it was called where that is rare
  vs published  how many times faster than the published formulas, in the same run
  of floor      seconds of the bare matrix products that anyone needs, in per cent of the median
  memory        peak growth during a call, beyond inputs and parameters
  error         of the result, and the largest of all gradients': difference from a float64 oracle
                in relative norm ("bfloat16": factors of float32 products are rounded to it)
  ≈             predicted from smaller batches, not run"""
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
    "gradients",
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
    """Print every series, how it grows, and what has no part in it."""
    print(LEGEND)
    for title, members in series_of(rows).items():
        if "sampled" in title:
            title += f" ({DIRECTION_SAMPLES} videos per text)"
        lines = _lines(members)
        if lines:
            print_table(title, COLUMNS, lines)
        else:
            print(f"\n{title}")
        _print_reasons([row for row in members if row["status"] != UNAVAILABLE])
        own = [fit for fit in fits if all(fit[key] == members[0][key] for key in SERIES)]
        if own:
            print_table("growth with the batch size B", _GROWTH_COLUMNS, [_fit(f) for f in own])
        print()
    _print_absent([row for row in rows if row["status"] == UNAVAILABLE])


def _lines(rows: list[Row]) -> list[list[str]]:
    lines: list[list[str]] = []
    for batch in dict.fromkeys(row["batch"] for row in rows):
        own = [r for r in rows if r["batch"] == batch and r["status"] != UNAVAILABLE]
        # Rows that are all empty say less than the line below the table.
        if not any(row["status"] == OK for row in own):
            continue
        lines += [[], *(_line(row, row is own[0]) for row in own)]
    return lines[1:]


def _line(row: Row, first: bool) -> list[str]:
    head = [str(row["batch"]) if first else "", row["implementation"]]
    errors = [error_text(row.get(key)) for key in ("relative_error", "gradient_error")]
    if row["status"] != OK:
        time, space = row.get("predicted_seconds"), row.get("predicted_bytes")
        time = f"≈ {seconds_text(time)}" if time else ""
        space = f"≈ {bytes_text(space)}" if space else ""
        return [*head, time, row["status"], "", "", "", space, *errors]
    times, peak = row.get("times_published"), row.get("peak_growth_bytes")
    return [
        *head,
        seconds_text(row["median_seconds"]),
        _spread(row),
        rate_text(row["pairs_per_second"]),
        times_text(times) if times else "",
        f"{100 * row['floor_fraction']:.0f} %",
        bytes_text(peak) if peak is not None else "unknown",
        *errors,
    ]


def _spread(row: Row) -> str:
    """Quartiles; of one or two samples, that they are so few."""
    count = len(row["seconds"])
    if count < 3:
        return "one call" if count == 1 else f"{count} calls"
    quartiles = (row["lower_quartile_seconds"], row["upper_quartile_seconds"])
    return " – ".join(seconds_text(value) for value in quartiles)


def _print_reasons(rows: list[Row]) -> None:
    """Why rows have no time, a line for each reason."""
    reasons: dict[tuple[int, str], list[str]] = {}
    batches: dict[int, list[str]] = {}
    for row in rows:
        batches.setdefault(row["batch"], []).append(row["status"])
        if row["status"] != OK:
            what = f"{row['status']}: {row['reason']}"
            reasons.setdefault((row["batch"], what), []).append(row["implementation"])
    for row in rows:
        if 2 * row.get("contended_samples", 0) >= len(row.get("seconds", ())) > 0:
            what = "slower than it is: other processes took cores meanwhile"
            reasons.setdefault((row["batch"], what), []).append(row["implementation"])
    for (batch, what), names in reasons.items():
        everyone = len(names) == len(batches[batch])
        print(f"B = {batch}, {'everyone' if everyone else '; '.join(names)}: {what}")


def _print_absent(rows: list[Row]) -> None:
    """What has no part in these tables, once for all of them."""
    reasons: dict[str, dict[str, None]] = {}
    for row in rows:
        reasons.setdefault(row["reason"], {})[row["implementation"]] = None
    if reasons:
        print("Not in the tables, or not in all of them:")
    for reason, names in reasons.items():
        print(f"  {'; '.join(names)}: {reason}")


def _fit(fit: dict[str, Any]) -> list[str]:
    exponents = (fit["time_exponent"], fit["memory_exponent"])
    texts = ["unknown" if value is None else f"{value:.2f}" for value in exponents]
    return [fit["implementation"], *texts, ", ".join(map(str, fit["batches"]))]
