"""Numbers as text, and tables in Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

Table = tuple[list[str], list[list[str]]]
"""Columns, and lines of text; a column named with a leading ``<`` is aligned to the left."""


def markdown(columns: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table in Markdown whose source is aligned too."""
    left = [column.startswith("<") for column in columns]
    rows = [[column.removeprefix("<") for column in columns], *lines]
    widths = [max(3, *(len(row[i]) for row in rows)) for i in range(len(columns))]
    rule = [
        "-" * w if is_left else "-" * (w - 1) + ":" for w, is_left in zip(widths, left, strict=True)
    ]

    def line(row: Sequence[str]) -> str:
        cells = zip(row, widths, left, strict=True)
        padded = (c.ljust(w) if is_left else c.rjust(w) for c, w, is_left in cells)
        return f"| {' | '.join(padded)} |"

    return "\n".join(line(row) for row in (rows[0], rule, *rows[1:]))


def seconds_text(seconds: float) -> str:
    """Three significant digits: ``1.23 s``, ``45.6 ms``, ``7.89 µs``."""
    for factor, unit in ((1.0, "s"), (1e3, "ms")):
        if seconds * factor >= 1:
            return f"{three_digits(seconds * factor)} {unit}"
    return f"{three_digits(seconds * 1e6)} µs"


def bytes_text(count: float | None) -> str:
    """``1.50 GiB``, ``12.3 MiB``."""
    if count is None:
        return "unknown"
    if count >= 2**30:
        return f"{three_digits(count / 2**30)} GiB"
    return f"{three_digits(count / 2**20)} MiB"


def rate_text(per_second: float) -> str:
    """``1.23 M``, ``456 k``."""
    for factor, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if per_second >= factor:
            return f"{three_digits(per_second / factor)}{unit}"
    return three_digits(per_second)


def times_text(factor: float) -> str:
    """``12.3 ×``."""
    return f"{three_digits(factor)} ×"


def error_text(error: float | None) -> str:
    """One digit: ``3e-07``; nothing where there is none."""
    return "" if error is None else f"{error:.0e}"


def three_digits(value: float) -> str:
    decimals = 0 if value >= 99.95 else 1 if value >= 9.995 else 2
    return f"{value:.{decimals}f}"


def mean_and_spread(values: list[float]) -> str:
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"
