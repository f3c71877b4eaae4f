"""Captions and videos of a split, whatever data set they are of."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from garevla.data.frame_sampling import Sampling, TimeRange
from garevla.data.messages import shortened

_log = logging.getLogger(__name__)


class AnnotationError(ValueError):
    """An annotation file, or the collection of videos, that is not as it should be."""


@dataclass(frozen=True)
class Caption:
    """A caption, of one sentence or several, and the video it belongs to."""

    video_id: str
    text: str


class Clip(NamedTuple):
    """A part of a video that is retrieved by itself."""

    video: str
    time_range: TimeRange

    @property
    def video_id(self) -> str:
        """Its id: the video's, and the seconds as in the fragment of a URL."""
        return f"{self.video}#t={self.time_range.start:.12g},{self.time_range.end:.12g}"


@dataclass(frozen=True)
class Annotations:
    """What annotation files say of a split.

    Attributes:
        captions: in the order in which their videos are to be.
        notes: what is left out, and what looks wrong: a sentence each, with counts and names.
        clips: the ids that are parts of videos.
        names: of a video, those under which its file is looked for, the best first, where they are
            not its id.
    """

    captions: Sequence[Caption]
    notes: Sequence[str] = ()
    clips: Mapping[str, Clip] = field(default_factory=dict)
    names: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @property
    def video_ids(self) -> list[str]:
        """The ids of its videos and clips, in order."""
        return list(dict.fromkeys(caption.video_id for caption in self.captions))


@dataclass(frozen=True)
class RetrievalSplit:
    """Captions and videos of a split.

    Attributes:
        captions: any number of them per video, at least 1.
        videos: video id -> file, in the order of the annotation file.
        time_ranges: of the ids that are parts of their files.
    """

    captions: tuple[Caption, ...]
    videos: dict[str, Path]
    time_ranges: dict[str, TimeRange] = field(default_factory=dict)

    def without(self, video_ids: Collection[str]) -> RetrievalSplit:
        """Return the split without some videos and their captions."""
        dropped = set(video_ids)
        return RetrievalSplit(
            tuple(caption for caption in self.captions if caption.video_id not in dropped),
            {video_id: path for video_id, path in self.videos.items() if video_id not in dropped},
            self.time_ranges,
        )

    def sampling_of(self, video_id: str, sampling: Sampling) -> Sampling:
        """Which frames are taken of a video's file."""
        return sampling.within(self.time_ranges.get(video_id))


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


def repeated_captions(captions: Sequence[Caption]) -> str | None:
    """Say how many captions occur more than once of the same video; None where none does."""
    counts = Counter(captions)
    repeated = len(captions) - len(counts)
    if not repeated:
        return None
    example = counts.most_common(1)[0][0]
    return (
        f"{repeated} of {len(captions)} captions repeat one of the same video, such as "
        f"{example.text!r} of {example.video_id!r}"
    )


def shared_captions(captions: Sequence[Caption]) -> str | None:
    """Say how many captions fit several videos; None where none does."""
    videos_of = Counter(caption.text for caption in dict.fromkeys(captions))
    shared = Counter({text: count for text, count in videos_of.items() if count > 1})
    if not shared:
        return None
    text, count = shared.most_common(1)[0]
    return (
        f"{len(shared)} captions are of several videos each, such as {text!r} of {count}; "
        "retrieval cannot tell these videos apart by them"
    )


def log_overlap(train: RetrievalSplit, test: RetrievalSplit) -> None:
    """Log how many videos of the test split are trained on, by their ids or by their files."""
    files = {_shown(train, video_id) for video_id in train.videos}
    seen = [
        video_id
        for video_id in test.videos
        if video_id in train.videos or _shown(test, video_id) in files
    ]
    if seen:
        _log.warning(
            "%d of %d test videos are training videos, too, which makes the figures too good: %s",
            len(seen),
            len(test.videos),
            shortened(seen),
        )


def _shown(split: RetrievalSplit, video_id: str) -> tuple[str, TimeRange | None]:
    return os.path.realpath(split.videos[video_id]), split.time_ranges.get(video_id)
