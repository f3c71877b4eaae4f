"""Tables on the terminal: with rich where it is installed, else in columns of plain text."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence

# Wider than a table here ever is: output that goes to a file is not cut.
_FILE_WIDTH = 160


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows of text; the columns named with a leading ``<`` are aligned to the left.

    An empty row draws a line.
    """
    names = [column.removeprefix("<") for column in columns]
    left = [column.startswith("<") for column in columns]
    try:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text
    except ImportError:
        print(plain_table(title, names, left, rows), flush=True)
        return
    table = Table(title=Text(title, style="bold"), title_justify="left")
    for name, is_left in zip(names, left, strict=True):
        table.add_column(name, justify="left" if is_left else "right", no_wrap=True)
    for row in rows:
        if row:
            table.add_row(*(Text(cell) for cell in row))
        else:
            table.add_section()
    width = None if sys.stdout.isatty() else _FILE_WIDTH
    Console(width=width).print(table)


def plain_table(
    title: str, names: Sequence[str], left: Sequence[bool], rows: Sequence[Sequence[str]]
) -> str:
    """The same without rich."""
    cells = [list(names), *([list(row) for row in rows if row])]
    widths = [max(len(row[i]) for row in cells) for i in range(len(names))]

    def line(row: Sequence[str]) -> str:
        padded = (
            cell.ljust(width) if is_left else cell.rjust(width)
            for cell, width, is_left in zip(row, widths, left, strict=True)
        )
        return "  ".join(padded).rstrip()

    rule = "-" * min(sum(widths) + 2 * len(widths), shutil.get_terminal_size((140, 20)).columns)
    body = [line(row) if row else rule for row in rows]
    return "\n".join(["", title, line(names), rule, *body])


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown; the columns named with a leading ``<`` are aligned to the left."""
    rule = ["---" if column.startswith("<") else "---:" for column in columns]
    names = [column.removeprefix("<") for column in columns]
    return "\n".join("| " + " | ".join(row) + " |" for row in [names, rule, *rows])


def seconds_text(seconds: float) -> str:
    """Three significant digits: ``1.23 s``, ``45.6 ms``, ``7.89 µs``."""
    for factor, unit in ((1.0, "s"), (1e3, "ms")):
        if seconds * factor >= 1:
            return f"{_three_digits(seconds * factor)} {unit}"
    return f"{_three_digits(seconds * 1e6)} µs"


def bytes_text(count: float) -> str:
    """``1.50 GiB``, ``12.3 MiB``."""
    if count >= 2**30:
        return f"{_three_digits(count / 2**30)} GiB"
    return f"{_three_digits(count / 2**20)} MiB"


def rate_text(per_second: float) -> str:
    """``1.23 M``, ``456 k``."""
    for factor, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if per_second >= factor:
            return f"{_three_digits(per_second / factor)}{unit}"
    return _three_digits(per_second)


def times_text(factor: float) -> str:
    """``12.3 ×``."""
    return f"{_three_digits(factor)} ×"


def error_text(error: float | None) -> str:
    """One digit: ``3e-07``; nothing where there is none."""
    return "" if error is None else f"{error:.0e}"


def _three_digits(value: float) -> str:
    decimals = 0 if value >= 99.95 else 1 if value >= 9.995 else 2
    return f"{value:.{decimals}f}"
