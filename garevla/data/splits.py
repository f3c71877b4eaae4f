"""Captions and videos of a split, whatever data set they are of."""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

_log = logging.getLogger(__name__)


class AnnotationError(ValueError):
    """An annotation file, or the collection of videos, that is not as it should be."""


@dataclass(frozen=True)
class Caption:
    """A caption, of one sentence or several, and the video it belongs to."""

    video_id: str
    text: str


@dataclass(frozen=True)
class RetrievalSplit:
    """Captions and videos of a split.

    Attributes:
        captions: any number of them per video, at least 1.
        videos: video id -> file, in the order of the annotation file.
    """

    captions: tuple[Caption, ...]
    videos: dict[str, Path]

    def without(self, video_ids: Collection[str]) -> RetrievalSplit:
        """Return the split without some videos and their captions."""
        dropped = set(video_ids)
        return RetrievalSplit(
            tuple(caption for caption in self.captions if caption.video_id not in dropped),
            {video_id: path for video_id, path in self.videos.items() if video_id not in dropped},
        )


def log_skipped(before: RetrievalSplit, after: RetrievalSplit, why: str) -> None:
    """Log how many videos and captions a split has lost."""
    before_ids, after_ids = ({c.video_id for c in split.captions} for split in (before, after))
    _log.warning(
        "skipped %d of %d videos, which %s, and with them %d of %d captions",
        len(before_ids) - len(after_ids),
        len(before_ids),
        why,
        len(before.captions) - len(after.captions),
        len(before.captions),
    )
