"""Captions and videos of a split, whatever data set they are of."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from garevla.data.messages import shortened

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


def log_repetitions(captions: Sequence[Caption], split: str) -> None:
    """Log how many captions of a split occur more than once, and how many fit several videos."""
    counts = Counter(captions)
    repeated = len(captions) - len(counts)
    if repeated:
        example = counts.most_common(1)[0][0]
        _log.warning(
            "split %r: %d of %d captions repeat one of the same video, such as %r of %r",
            split,
            repeated,
            len(captions),
            example.text,
            example.video_id,
        )
    videos_of: Counter[str] = Counter(caption.text for caption in counts)
    shared = Counter({text: count for text, count in videos_of.items() if count > 1})
    if shared:
        _log.info(
            "split %r: %d captions are of several videos each, such as %r of %d; retrieval cannot "
            "tell these videos apart by them",
            split,
            len(shared),
            *shared.most_common(1)[0],
        )


def log_overlap(train: RetrievalSplit, test: RetrievalSplit) -> None:
    """Log how many videos of the test split are trained on, by their ids or by their files."""
    files = {os.path.realpath(path) for path in train.videos.values()}
    seen = [
        video_id
        for video_id, path in test.videos.items()
        if video_id in train.videos or os.path.realpath(path) in files
    ]
    if seen:
        _log.warning(
            "%d of %d test videos are training videos, too, which makes the figures too good: %s",
            len(seen),
            len(test.videos),
            shortened(seen),
        )
