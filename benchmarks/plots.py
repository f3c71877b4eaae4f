"""Time and memory against the batch size, both logarithmic, with the floor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.implementations import CHUNKED, COMPILED, PUBLISHED, UNBOUND
from benchmarks.profiler import OK
from benchmarks.similarity_tables import series_of
from benchmarks.tables import bytes_text, seconds_text

# The published forms in warm colours, garevla's backends in cold ones.
_STYLE = {
    PUBLISHED: ("#b2182b", "o"),
    UNBOUND: ("#ef8a62", "s"),
    COMPILED: ("#d9a400", "D"),
    CHUNKED: ("#8c510a", "^"),
    "eager": ("#67a9cf", "o"),
    "native": ("#08519c", "s"),
    "triton": ("#1b7837", "^"),
    "native, bfloat16": ("#6a51a3", "v"),
    "triton, bfloat16": ("#74c476", "P"),
}
_FLOOR = {"color": "0.35", "linestyle": "--", "linewidth": 1.3, "marker": "."}
_PANEL = (6.2, 3.9)
_NOTE = "Both axes logarithmic; lower is better. Hollow markers: predicted, not run."


def plot_rows(rows: list[dict[str, Any]], path: Path) -> bool:
    """Draw a line of two panels for each series; False, and a word, where that cannot be done."""
    try:
        import matplotlib
    except ImportError:
        print("no plot: matplotlib is not installed")
        return False
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    groups = {
        title: members
        for title, members in series_of(rows).items()
        if any(row["status"] == OK for row in members)
    }
    if not groups:
        print("no plot: nothing was measured")
        return False
    figure, axes = plt.subplots(
        len(groups),
        2,
        figsize=(2 * _PANEL[0], _PANEL[1] * len(groups) + 0.4),
        squeeze=False,
        layout="constrained",
    )
    for (title, members), (left, right) in zip(groups.items(), axes, strict=True):
        _panel(left, members, "median_seconds", "predicted_seconds")
        _panel(right, members, "peak_growth_bytes", "predicted_bytes")
        _draw_floor(left, members)
        _label_values(left, seconds_text)
        _label_values(right, bytes_text)
        left.set_ylabel("time")
        right.set_ylabel("peak growth of memory")
        left.set_title(title, loc="left", fontsize=10, fontweight="bold")
        right.legend(*_legend(left, right), loc="center left", bbox_to_anchor=(1.01, 0.5))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.suptitle(_NOTE, x=0.01, ha="left", fontsize=9, color="0.3")
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return True


def _panel(axis: Any, rows: list[dict[str, Any]], key: str, predicted: str) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter

    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    batches = sorted({row["batch"] for row in rows})
    for name, (colour, marker) in _STYLE.items():
        own = [row for row in rows if row["implementation"] == name]
        measured = [r for r in own if r["status"] == OK and r.get(key)]
        if measured:
            xs = [row["batch"] for row in measured]
            ys = [row[key] for row in measured]
            axis.plot(xs, ys, color=colour, marker=marker, markersize=5, label=name)
        # What was not run, where it is expected to be: hollow, dotted from the last one measured.
        missing = [
            r for r in own if r["status"] in ("too long", "out of memory") and r.get(predicted)
        ]
        if measured and missing:
            points = [measured[-1], missing[0]]
            values = [points[0][key], points[1][predicted]]
            xs = [row["batch"] for row in points]
            axis.plot(xs, values, color=colour, linestyle=":", linewidth=1.2)
            axis.plot(xs[1:], values[1:], color=colour, marker=marker, fillstyle="none")
    axis.xaxis.set_major_locator(FixedLocator(batches))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:.0f}"))
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.set_xlabel("batch size (texts = videos)")
    axis.grid(True, which="major", color="0.88")
    axis.spines[["top", "right"]].set_visible(False)


def _draw_floor(axis: Any, rows: list[dict[str, Any]]) -> None:
    floors = {row["batch"]: row["floor_seconds"] for row in rows if row.get("floor_seconds")}
    if floors:
        axis.plot(floors.keys(), floors.values(), label="floor (bare products)", **_FLOOR)


def _legend(*axes: Any) -> tuple[list[Any], list[str]]:
    entries: dict[str, Any] = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    return list(entries.values()), list(entries)


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
