"""Plots as SVG for a page: drawn by matplotlib, in the page's own text color."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

BLUE, ORANGE, GREEN, GRAY = "#3b82c4", "#dd7a30", "#3f9c6b", "#8b8f97"

# Stands for the page's color of text, which SVG calls currentColor.
_INK = "#010203"
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "garevla",
    "font.size": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.15,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _INK,
    "grid.color": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
}


def draw(name: str, description: str, plot: Callable[[Any], None]) -> str:
    """Draw on a pair of axes; returns an ``<svg>`` element.

    Args:
        name: without spaces, which no other plot of the page has.
        description: for those who do not see it, escaped for HTML.
        plot: is given matplotlib's axes.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        import matplotlib
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('plots need matplotlib: pip install "garevla[video]"') from error

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(5.4, 3.1), layout="constrained")
        FigureCanvasSVG(figure)
        plot(figure.subplots())
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].replace(_INK, "currentColor")
    # Metadata and sizes are matplotlib's; names must differ from other plots' on the page.
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'href="#', f'href="#{name}-', svg)
    svg = svg.replace("url(#", f"url(#{name}-")
    return svg.replace("<svg", f'<svg role="img" aria-label="{description}"', 1)


def legend_above(axes: Any) -> None:
    """A legend that covers no line."""
    axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=2, fontsize=8.5)


def lines(
    axes: Any,
    x: Sequence[float],
    series: Mapping[str, tuple[Sequence[float | None], str, str]],
    *,
    x_label: str,
    y_label: str,
    whole_numbers: bool = False,
) -> None:
    """Draw lines by their names in the legend; each has numbers, a color and a line style."""
    from matplotlib.ticker import MaxNLocator

    marker = "o" if len(x) <= 30 else None
    for label, (values, color, style) in series.items():
        numbers = [float("nan") if value is None else value for value in values]
        axes.plot(x, numbers, style, color=color, marker=marker, markersize=3.5, label=label)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    if whole_numbers:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    legend_above(axes)


def histogram(
    axes: Any,
    found: Mapping[str, Any],
    series: Mapping[str, tuple[str, str, str]],
    *,
    x_label: str,
) -> None:
    """Draw the shares of bins: a label's histogram, the name of its counts there, and a color.

    Args:
        found: histograms by name, as :meth:`garevla.analysis.Histogram.as_dict`.
        series: by label.
        x_label: what was counted.
    """
    for label, (name, kind, color) in series.items():
        each = found[name]
        counts = each["counts"][kind]
        total = max(1, sum(counts))
        width = (each["high"] - each["low"]) / len(counts)
        edges = [each["low"] + index * width for index in range(len(counts) + 1)]
        shares = [100 * count / total for count in counts]
        axes.stairs(shares, edges, fill=True, color=color, alpha=0.25)
        axes.stairs(shares, edges, color=color, linewidth=1.6, label=label)
    axes.set_xlabel(x_label)
    axes.set_ylabel("share, %")
    axes.set_ylim(bottom=0)
    legend_above(axes)
