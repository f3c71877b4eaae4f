"""For people: a table of figures, and a picture of a few queries with their best videos."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from garevla.evaluation.bootstrap import StandardErrors
from garevla.evaluation.metrics import RetrievalMetrics
from garevla.evaluation.retrieval import EncodedSplit, SupportsRetrieval
from garevla.evaluation.streaming import streaming_ranks
from garevla.evaluation.tiles import top_k
from garevla.utils.modes import evaluation_mode

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from garevla.data.frame_sampling import TimeRange
    from garevla.data.splits import RetrievalSplit

_COLUMNS = (
    ("R@1 %", "recall_at_1", ".1f"),
    ("R@5 %", "recall_at_5", ".1f"),
    ("R@10 %", "recall_at_10", ".1f"),
    ("MdR", "median_rank", ".1f"),
    ("MnR", "mean_rank", ".1f"),
    ("queries", "num_queries", "d"),
)
_CORRECT = "#1a9641"
_WRONG = "#9a9a9a"
# Inches; the frames of one strip share a height, so films of any shape line up.
_FRAME_HEIGHT = 0.95
_STRIP_WIDTH = 8.4
_LABEL_WIDTH = 2.1
_ROW_GAP = 0.16
_LINE_HEIGHT = 0.24
_MARGIN = 0.25
_DOTS_PER_INCH = 110
_CAPTION_COLUMNS = 95


@dataclass(frozen=True)
class QueryResult:
    """One caption and its best videos.

    Attributes:
        caption: the query.
        target_id: id of its right video.
        target_rank: rank of the right video among all, counted from 1.
        results: the best videos, best first: (video id, file, score).
        time_ranges: of the ids that are parts of their files.
    """

    caption: str
    target_id: str
    target_rank: float
    results: tuple[tuple[str, Path, float], ...]
    time_ranges: Mapping[str, TimeRange] = field(default_factory=dict)


def metrics_table(
    metrics: Mapping[str, RetrievalMetrics],
    standard_errors: Mapping[str, StandardErrors] | None = None,
) -> str:
    """Format figures as plain text: a header, then one line for each entry.

    Args:
        metrics: figures by row name; underscores in names become spaces.
        standard_errors: by the same names, to stand behind the figures.
    """
    rows = [["", *(title for title, _, _ in _COLUMNS)]]
    for name, figures in metrics.items():
        values = [format(getattr(figures, field), spec) for _, field, spec in _COLUMNS]
        if standard_errors is not None:
            values = [
                f"{value} ±{format(getattr(standard_errors[name], field), spec)}"
                if hasattr(standard_errors[name], field)
                else value
                for value, (_, field, spec) in zip(values, _COLUMNS, strict=True)
            ]
        rows.append([name.replace("_", " "), *values])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for name, *values in rows:
        cells = [name.ljust(widths[0])]
        cells += [value.rjust(width) for value, width in zip(values, widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def describe_queries(
    model: SupportsRetrieval,
    encoded: EncodedSplit,
    split: RetrievalSplit,
    queries: Sequence[int],
    *,
    k: int = 3,
) -> list[QueryResult]:
    """Find the best videos of a few captions, for :func:`contact_sheet`.

    Args:
        model, encoded: as :func:`garevla.evaluation.retrieval.evaluate_encoded`.
        split: the split that was encoded; gives caption texts and video files.
        queries: caption indices, 0..A-1.
        k: number of videos for each caption, 1..B.

    Raises:
        IndexError: a caption index out of range.
        ValueError: no queries, or k out of range.
    """
    if len(queries) == 0:
        raise ValueError("queries is empty")
    for query in queries:
        if not 0 <= query < len(split.captions):
            raise IndexError(f"queries must be in 0..{len(split.captions) - 1}, got {query}")
    texts = encoded.text_features[list(queries)]
    targets = encoded.targets[list(queries)]
    arguments = (texts, encoded.frame_features, model.similarity)
    with evaluation_mode(model):
        scores, indices = top_k(*arguments, encoded.frame_mask, k=k)
        ranks, _ = streaming_ranks(*arguments, targets, encoded.frame_mask)
    described = []
    for row, query in enumerate(queries):
        ids = [encoded.video_ids[index] for index in indices[row].tolist()]
        files = [split.videos[video_id] for video_id in ids]
        described.append(
            QueryResult(
                caption=split.captions[query].text,
                target_id=split.captions[query].video_id,
                target_rank=float(ranks[row]),
                results=tuple(zip(ids, files, scores[row].tolist(), strict=True)),
                time_ranges=split.time_ranges,
            )
        )
    return described


def contact_sheet(
    path: str | os.PathLike[str], queries: Sequence[QueryResult], *, num_frames: int = 6
) -> None:
    """Draw queries with their best videos as strips of frames, and save a PNG.

    Each query shows its caption, and below it one row for each video: place, score, id, and
    frames in order of time. The right video has a green border and the word "correct".

    Args:
        path: the PNG to write; its folder is made if need be.
        queries: from :func:`describe_queries`.
        num_frames: most frames shown of a video, spread over its length.

    Raises:
        ValueError: no queries.
        garevla.data.video.VideoError: a video that cannot be read.
        ImportError: matplotlib or the video reader is not installed.
    """
    if len(queries) == 0:
        raise ValueError("queries is empty")
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('pictures need matplotlib: pip install "garevla[video]"') from error

    headings = [_heading(query) for query in queries]
    heights = [
        _height(heading) + len(query.results) * (_FRAME_HEIGHT + _ROW_GAP) + _MARGIN
        for heading, query in zip(headings, queries, strict=True)
    ]
    width = _LABEL_WIDTH + _STRIP_WIDTH + 2 * _MARGIN
    figure = Figure(figsize=(width, sum(heights) + _MARGIN), dpi=_DOTS_PER_INCH)
    top = figure.get_figheight() - _MARGIN
    for heading, query, height in zip(headings, queries, heights, strict=True):
        _draw_query(figure, top, heading, query, num_frames)
        top -= height
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png", facecolor="white")


def _draw_query(
    figure: Figure, top: float, heading: str, query: QueryResult, num_frames: int
) -> None:
    """A query's heading from ``top`` (inches) downwards, and below it a row for each video."""
    _text(figure, _MARGIN, top, heading, va="top", fontsize=12, fontweight="bold")
    row_top = top - _height(heading)
    for place, (video_id, file, score) in enumerate(query.results, start=1):
        correct = video_id == query.target_id
        label = f"{place}.  score {score:.3f}\n{_short(video_id)}"
        if correct:
            label += "\n✓ correct"
        _text(
            figure,
            _MARGIN,
            row_top - _FRAME_HEIGHT / 2,
            label,
            va="center",
            fontsize=10,
            color=_CORRECT if correct else "#333333",
            fontweight="bold" if correct else "normal",
        )
        frames = _frames(file, num_frames, query.time_ranges.get(video_id))
        _strip(figure, row_top, frames, correct)
        row_top -= _FRAME_HEIGHT + _ROW_GAP


def _height(heading: str) -> float:
    """Height of a heading, in inches."""
    return (heading.count("\n") + 1) * _LINE_HEIGHT


def _heading(query: QueryResult) -> str:
    shown = any(video_id == query.target_id for video_id, _, _ in query.results)
    text = f"“{query.caption.strip()}”"
    if not shown:
        text += f"   (correct: {query.target_id}, at rank {query.target_rank:g})"
    return textwrap.fill(text, _CAPTION_COLUMNS)


def _short(video_id: str) -> str:
    return video_id if len(video_id) <= 24 else f"{video_id[:12]}…{video_id[-11:]}"


def _text(figure: Figure, left: float, bottom: float, text: str, **style: Any) -> None:
    width, height = figure.get_size_inches()
    # parse_math off: a "$" in a caption is a dollar.
    figure.text(left / width, bottom / height, text, ha="left", parse_math=False, **style)


def _frames(file: Path, num_frames: int, time_range: TimeRange | None) -> np.ndarray:
    from garevla.data.frame_sampling import Sampling
    from garevla.data.video import read_frames

    return read_frames(file, Sampling(num_frames, "resample", time_range=time_range))


def _strip(figure: Figure, top: float, frames: np.ndarray, correct: bool) -> None:
    separator = np.full((frames.shape[1], max(1, frames.shape[2] // 40), 3), 255, np.uint8)
    parts = [part for frame in frames for part in (frame, separator)][:-1]
    picture = np.concatenate(parts, axis=1)
    # The strip keeps its shape: full height unless that would be too wide.
    strip_height = min(_FRAME_HEIGHT, _STRIP_WIDTH * picture.shape[0] / picture.shape[1])
    strip_width = strip_height * picture.shape[1] / picture.shape[0]
    figure_width, figure_height = figure.get_size_inches()
    bottom = top - (_FRAME_HEIGHT + strip_height) / 2
    axes = figure.add_axes(
        (
            (_MARGIN + _LABEL_WIDTH) / figure_width,
            bottom / figure_height,
            strip_width / figure_width,
            strip_height / figure_height,
        )
    )
    axes.imshow(picture, aspect="auto", interpolation="antialiased")
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(edgecolor=_CORRECT if correct else _WRONG, linewidth=4 if correct else 1)
