"""Picture of a training run, drawn from its metrics.jsonl."""

from __future__ import annotations

import os
from typing import Any

from garevla.utils.files import atomic_file

_LOSS_PANELS = {
    "loss": "loss",
    "contrastive": "contrastive",
    "bottleneck": "bottleneck (unweighted)",
    "direction": "direction (unweighted)",
    "trust_region": "trust region (unweighted)",
    "frame": "frame level (unweighted)",
    "distillation": "distillation (unweighted)",
}
_DIRECTIONS = {"text_to_video": "text to video", "video_to_text": "video to text"}
_COLORS = ("#1f5fa8", "#d1662a")


def draw_curves(records: list[dict[str, Any]], path: str | os.PathLike[str]) -> None:
    """Draw the loss terms of each step and R@1 of each epoch, and save a PNG.

    Args:
        records: of :func:`garevla.training.log.read_metrics`.
        path: the PNG to write or replace.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator
    except ImportError as error:
        raise ImportError('curves need matplotlib: pip install "garevla[video]"') from error

    steps = [record for record in records if record["kind"] == "train"]
    evaluations = [record for record in records if record["kind"] == "evaluation"]
    figure = Figure(figsize=(16, 7))
    FigureCanvasAgg(figure)
    panels = figure.subplots(2, 4).flatten()
    figure.subplots_adjust(0.04, 0.08, 0.98, 0.95, wspace=0.2, hspace=0.35)
    for panel, (name, title) in zip(panels, _LOSS_PANELS.items(), strict=False):
        points = [(record["epoch"], record[name]) for record in steps if name in record]
        panel.plot(*zip(*points, strict=True), color=_COLORS[0], linewidth=1.2) if points else None
        panel.set_title(title if points else f"{title}: off", fontsize=12)
    recall = panels[-1]
    for (direction, label), color in zip(_DIRECTIONS.items(), _COLORS, strict=True):
        recall.plot(
            [record["epoch"] for record in evaluations],
            [record[direction]["recall_at_1"] for record in evaluations],
            color=color,
            marker="o",
            markersize=4,
            label=label,
        )
    recall.set_title("R@1 on the test split, %", fontsize=12)
    recall.set_ylim(bottom=0)
    recall.legend()
    for panel in panels:
        panel.set_xlabel("epoch", fontsize=11)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.grid(alpha=0.3)
    with atomic_file(path) as file:
        figure.savefig(file, dpi=110, format="png")
