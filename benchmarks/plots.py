"""Time and memory against the batch size, both logarithmic, with the floor."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from benchmarks.cases import Case
from benchmarks.implementations import NAMES, PUBLISHED
from benchmarks.peers import PEER_NAMES
from benchmarks.rows import OK, OUT_OF_MEMORY, TOO_LONG, Row
from benchmarks.tables.pairs import case_of, series_of
from benchmarks.tables.text import bytes_text, seconds_text

# The published forms in warm colors, garevla's backends in cold ones, in the order of the list;
# their peers, who share no panel with them, in any.
_WARM = (("#b2182b", "o"), ("#ef8a62", "s"), ("#d9a400", "D"), ("#8c510a", "^"))
_COLD = (
    ("#08519c", "s"),
    ("#67a9cf", "o"),
    ("#1b7837", "^"),
    ("#6a51a3", "v"),
    ("#74c476", "P"),
    ("#41b6c4", "X"),
    ("#02818a", "D"),
    ("#3690c0", "<"),
    ("#9e9ac8", ">"),
)
_PEERS = tuple(
    (f"C{number % 10}", marker) for number, marker in enumerate(("o", "s", "D", "^", "v") * 3)
)
_FORMS = tuple(name for name in NAMES if name.startswith(PUBLISHED))
_STYLE = {
    name: styles[number % len(styles)]
    for styles, names in (
        (_WARM, _FORMS),
        (_COLD, [name for name in NAMES if name not in _FORMS]),
        (_PEERS, PEER_NAMES),
    )
    for number, name in enumerate(names)
}
_FLOOR = {"color": "0.25", "linestyle": "--", "linewidth": 1.3, "marker": "."}
_PANEL = (5.0, 3.1)
_HEADER_INCHES = 1.1
_TITLE = "Time of one call and peak growth of memory during it, against the batch size"
_NOTE = "Both axes logarithmic, lower is better. Hollow, dotted: predicted, not run."
_DOTS_PER_INCH = 110
_COLORS = 128


def plot_rows(rows: list[Row], path: Path) -> bool:
    """Draw a line of two panels for each series; False, and a word, where that cannot be done."""
    try:
        import matplotlib
    except ImportError:
        print("no plot: matplotlib is not installed")
        return False
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    groups = [
        members
        for members in series_of(rows).values()
        if any(row["status"] == OK for row in members)
    ]
    if not groups:
        print("no plot: nothing was measured")
        return False
    size = (2 * _PANEL[0], _PANEL[1] * len(groups) + _HEADER_INCHES)
    figure, axes = plt.subplots(len(groups), 2, figsize=size, squeeze=False, layout="constrained")
    cases = [case_of(members[0]) for members in groups]
    shapes = list(dict.fromkeys(case.shape for case in cases))
    for case, members, (left, right) in zip(cases, groups, axes, strict=True):
        _panel(left, members, "median_seconds", "predicted_seconds")
        _panel(right, members, "peak_growth_bytes", "predicted_bytes")
        _draw_floor(left, members)
        _label_values(left, seconds_text)
        _label_values(right, bytes_text)
        what = _what(case) if len(shapes) == 1 else f"{_what(case)}\n{case.shape}"
        left.set_title(f"Time: {what}", loc="left", fontsize=9, fontweight="bold")
        right.set_title(f"Memory: {what}", loc="left", fontsize=9, fontweight="bold")
    for axis in axes[-1]:
        axis.set_xlabel("batch size B (B texts, B videos)")
    where = [shapes[0] if len(shapes) == 1 else "", rows[0].get("machine")]
    header = [_TITLE, "; ".join(filter(None, where)), _NOTE]
    figure.suptitle("\n".join(header), x=0.01, ha="left", fontsize=9.5, linespacing=1.4)
    figure.legend(*_legend(axes.flat), loc="outside lower left", ncols=4, fontsize=9, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    _save(figure, path)
    plt.close(figure)
    return True


def _what(case: Case) -> str:
    if case.workload == "similarity":
        return f"similarity, {case.passes}"
    if case.workload == "info_nce":
        return f"InfoNCE alone, {case.passes}"
    term = {
        "off": "without direction",
        "exact": "with direction",
        "sampled": "with direction sampled",
    }
    return f"loss {term[case.direction]}, {case.passes}"


def _panel(axis: Any, rows: list[Row], key: str, predicted: str) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter

    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    batches = sorted({row["batch"] for row in rows})
    for name, (color, marker) in _STYLE.items():
        own = [row for row in rows if row["implementation"] == name]
        measured = [r for r in own if r["status"] == OK and r.get(key)]
        if measured:
            xs = [row["batch"] for row in measured]
            ys = [row[key] for row in measured]
            axis.plot(xs, ys, color=color, marker=marker, markersize=5, label=name)
        # The next that was not run, where it is expected to be.
        missing = [r for r in own if r["status"] in (TOO_LONG, OUT_OF_MEMORY) and r.get(predicted)]
        if measured and missing:
            points = [measured[-1], missing[0]]
            values = [points[0][key], points[1][predicted]]
            xs = [row["batch"] for row in points]
            axis.plot(xs, values, color=color, linestyle=":", linewidth=1.2)
            axis.plot(xs[1:], values[1:], color=color, marker=marker, fillstyle="none")
    axis.xaxis.set_major_locator(FixedLocator(batches))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:.0f}"))
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.grid(True, which="major", color="0.88")
    axis.spines[["top", "right"]].set_visible(False)


def _draw_floor(axis: Any, rows: list[Row]) -> None:
    floors = {row["batch"]: row["floor_seconds"] for row in rows if row.get("floor_seconds")}
    if floors:
        axis.plot(floors.keys(), floors.values(), label="floor: bare products", **_FLOOR)


def _legend(axes: Any) -> tuple[list[Any], list[str]]:
    """Every implementation once, in the order of the styles, the floor last."""
    entries: dict[str, Any] = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    order = list(_STYLE)
    labels = sorted(entries, key=lambda name: order.index(name) if name in order else len(order))
    return [entries[label] for label in labels], labels


def _label_values(axis: Any, text: Any) -> None:
    """Powers of ten of seconds, of two or four of bytes; of finer steps where there are few."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axis.get_ylim()
    if text is seconds_text:
        fine = high / low < 30
        locator = LogLocator(10, subs=(1, 2, 5) if fine else (1,), numticks=20)
    else:
        axis.set_yscale("log", base=2)
        locator = LogLocator(2 if high / low < 2**6 else 4, numticks=20)
    axis.yaxis.set_major_locator(locator)
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(text(value))))
    axis.yaxis.set_minor_formatter(NullFormatter())
    axis.set_ylim(low, high)


def _short(text: str) -> str:
    """Without decimals that say nothing: ``1 s`` for ``1.00 s``."""
    number, unit = text.split()
    if "." in number:
        number = number.rstrip("0").rstrip(".")
    return f"{number} {unit}"


def _save(figure: Any, path: Path) -> None:
    """As PNG of few colors: these files are committed."""
    from PIL import Image

    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=_DOTS_PER_INCH, format="png")
    with Image.open(drawn) as picture:
        # Few pixels have a line's color: by their number, similar colors would become one.
        reduced = picture.convert("RGB").quantize(_COLORS, Image.Quantize.MAXCOVERAGE)
        reduced.save(path, optimize=True)
