"""What a search finds: neighbouring segments of one video become one result."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

# Below this confidence, more than half of the bank's captions find something better.
LITTLE_CONFIDENCE = 0.5
# A neighbour joins a result that it is nearer to in score than to the middle of the candidates.
_SHARE = 0.5
# Seconds between segments that touch.
_TOUCHING = 0.05


class Scored(NamedTuple):
    """A segment with its score; ``start`` and ``end`` in seconds."""

    id: int
    video_id: int
    start: float
    end: float
    score: float


@dataclass(frozen=True)
class Result:
    """A part of a video.

    Attributes:
        path: of the video, relative to the indexed folder, ``/`` between its parts.
        file: its absolute path.
        start, end: seconds.
        score: the exact score of its best segment.
        confidence: from 0 to 1, the share of the bank's captions that find nothing in the index
            that is as good; None where that is not known. docs/search.md says more.
        video_id: of the video in the index.
        segment_ids: its segments in order of time.
        best_segment: the id of the best one, whose thumbnail stands for the result.
        thumbnail: a JPEG.
    """

    path: str
    file: Path
    start: float
    end: float
    score: float
    confidence: float | None
    video_id: int
    segment_ids: tuple[int, ...]
    best_segment: int
    thumbnail: bytes

    def line(self) -> str:
        """The result in a line."""
        confidence = "" if self.confidence is None else f"  confidence {self.confidence:.2f}"
        # A line break in a name would look like two results.
        path = self.path if self.path.isprintable() else repr(self.path)
        return f"{clock(self.start)}–{clock(self.end)}  score {self.score:.3f}{confidence}  {path}"

    def as_dict(self) -> dict[str, Any]:
        """Values that JSON can hold, without the thumbnail."""
        return {
            "path": self.path,
            "file": str(self.file),
            "start": self.start,
            "end": self.end,
            "score": self.score,
            "confidence": self.confidence,
            "video_id": self.video_id,
            "segment_ids": list(self.segment_ids),
            "best_segment": self.best_segment,
        }


def merge(scored: Iterable[Scored]) -> list[list[Scored]]:
    """Join segments that touch or overlap, from the best on.

    A segment joins a group of its video that it touches if its score is nearer to the group's best
    than to the median of all; else it begins a group of its own. A segment between two groups
    joins both into one.

    Returns:
        Groups, best first; of each the segments, best first.
    """
    segments = sorted(scored, key=lambda each: (-each.score, each.id))
    if not segments:
        return []
    median = float(np.median([segment.score for segment in segments]))
    groups: list[list[Scored]] = []
    of_video: dict[int, list[list[Scored]]] = {}
    for segment in segments:
        joined: list[Scored] | None = None
        for group in list(of_video.get(segment.video_id, [])):
            best = group[0].score
            if not _touch(group, segment) or segment.score < best - _SHARE * (best - median):
                continue
            if joined is None:
                group.append(segment)
                joined = group
            else:
                # Groups are in order of their best: the earlier one goes on.
                joined += group
                groups = [each for each in groups if each is not group]
                of_video[segment.video_id] = [
                    each for each in of_video[segment.video_id] if each is not group
                ]
        if joined is None:
            groups.append([segment])
            of_video.setdefault(segment.video_id, []).append(groups[-1])
    return groups


def _touch(group: list[Scored], segment: Scored) -> bool:
    begin, end = min(each.start for each in group), max(each.end for each in group)
    return segment.start <= end + _TOUCHING and segment.end >= begin - _TOUCHING


def clock(seconds: float) -> str:
    """Seconds as ``minutes:seconds``, with hours where there are some."""
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(int(minutes), 60)
    return f"{hours}:{minutes:02}:{rest:04.1f}" if hours else f"{minutes}:{rest:04.1f}"
