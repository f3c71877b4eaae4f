"""A picture of what a search has found."""

from __future__ import annotations

import io
import os
import textwrap
from collections.abc import Sequence
from pathlib import Path

from garevla.data._optional import require
from garevla.search.results import Result, clock

_COLUMNS = 5
# Inches.
_CELL = (2.2, 1.9)
_HEADING = 0.6
_DOTS_PER_INCH = 110


def contact_sheet(path: str | os.PathLike[str], query: str, results: Sequence[Result]) -> None:
    """Draw the thumbnails of results, best first, and save a PNG.

    Args:
        path: the PNG to write; its folder is made if need be.
        query: what was looked for.
        results: from :meth:`garevla.search.Library.search`.

    Raises:
        ImportError: matplotlib or Pillow is not installed.
    """
    figure_class = require("matplotlib.figure").Figure
    rows = max(1, -(-len(results) // _COLUMNS))
    size = (_COLUMNS * _CELL[0], rows * _CELL[1] + _HEADING)
    figure = figure_class(figsize=size, dpi=_DOTS_PER_INCH)
    # parse_math off: a "$" in a name is a dollar.
    figure.suptitle(textwrap.shorten(query, 100), y=1 - 0.15 / size[1], va="top", parse_math=False)
    for place, result in enumerate(results):
        axes = figure.add_axes(
            (
                (place % _COLUMNS + 0.04) / _COLUMNS,
                (rows - 1 - place // _COLUMNS + 0.3) * _CELL[1] / size[1],
                0.92 / _COLUMNS,
                0.66 * _CELL[1] / size[1],
            )
        )
        axes.imshow(require("PIL.Image").open(io.BytesIO(result.thumbnail)))
        axes.set_axis_off()
        axes.text(
            0.5,
            -0.04,
            _label(place, result),
            transform=axes.transAxes,
            ha="center",
            va="top",
            fontsize=8,
            parse_math=False,
        )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png", facecolor="white")


def _label(place: int, result: Result) -> str:
    name = result.path if result.path.isprintable() else ascii(result.path)
    name = name if len(name) <= 34 else f"…{name[-33:]}"
    confidence = "" if result.confidence is None else f", confidence {result.confidence:.2f}"
    times = f"{clock(result.start)}–{clock(result.end)}"
    return f"{place + 1}. {times}{confidence}\n{name}"
