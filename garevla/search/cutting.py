"""Cutting videos into segments, and which frames of a segment are taken."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from garevla.data._optional import require
from garevla.data.frame_sampling import Sampling, frame_indices
from garevla.data.messages import first_line
from garevla.data.pyav_reader import Packets
from garevla.data.video_errors import VideoError
from garevla.search.format import MOST_SEGMENTS

Segments = Literal["fixed", "whole", "shots"]


@dataclass(frozen=True)
class Cutting:
    """How videos are cut.

    Attributes:
        segments: ``"fixed"`` lengths, the ``"whole"`` video, or ``"shots"``, found by PySceneDetect
            and cut further where they are longer than ``seconds``.
        seconds: length of a segment.
        overlap: seconds that a segment of a fixed length shares with the next.

    Raises:
        ValueError: a value out of its range.
    """

    segments: Segments = "fixed"
    seconds: float = 10.0
    overlap: float = 2.0

    def __post_init__(self) -> None:
        if self.segments not in ("fixed", "whole", "shots"):
            raise ValueError(f"segments must be fixed, whole or shots, got {self.segments!r}")
        if not 0.1 <= self.seconds < float("inf"):
            raise ValueError(f"segment_seconds must be at least 0.1, got {self.seconds}")
        if not 0 <= self.overlap <= 0.9 * self.seconds:
            raise ValueError(
                "overlap_seconds must be from 0 to nine tenths of segment_seconds = "
                f"{self.seconds}, got {self.overlap}"
            )

    def ranges(self, path: Path, seconds: float) -> list[tuple[float, float]]:
        """Where each segment of a video begins and ends, in seconds.

        Raises:
            VideoError: more segments than a video may have.
            ImportError: PySceneDetect is needed, and not installed.
        """
        if self.segments == "whole":
            return [(0.0, seconds)]
        parts = [(0.0, seconds)]
        if self.segments == "shots":
            parts = _shots(path, seconds)
        ranges = [piece for part in parts for piece in self._pieces(*part)]
        if len(ranges) > MOST_SEGMENTS:
            raise VideoError.of(path, f"{len(ranges)} segments, at most {MOST_SEGMENTS} can be")
        return ranges

    def _pieces(self, begin: float, end: float) -> list[tuple[float, float]]:
        stride = self.seconds - self.overlap
        # No segment lies whole within the one before.
        count = max(1, int(np.ceil((end - begin - self.overlap) / stride - 1e-9)))
        starts = [begin + number * stride for number in range(count)]
        return [(start, min(start + self.seconds, end)) for start in starts]


def frame_times(packets: Packets, num_frames: int) -> tuple[np.ndarray, float]:
    """When each of a video's frames is shown, from 0, and the video's length, in seconds."""
    step = 1 / packets.frame_rate()
    times = np.sort(np.asarray(packets.times))
    # Where not every packet tells its time, or is a frame, the rate has to do.
    if len(times) != num_frames or not np.isfinite(times).all():
        times = np.arange(num_frames) * step
    times = times - times[0]
    last = float(np.median(np.diff(times))) if num_frames > 1 else step
    return times, float(times[-1]) + (last or step)


def sampled_frames(
    times: np.ndarray, ranges: list[tuple[float, float]], frame_rate: float, sampling: Sampling
) -> list[np.ndarray]:
    """The indices of the frames to take of each segment, one at least."""
    chosen = []
    for begin, end in ranges:
        first, last = np.searchsorted(times, [begin - 1e-6, end - 1e-6])
        # In a slide show no frame may begin in a segment: the one that is on then.
        first = min(first, max(last - 1, 0), len(times) - 1)
        count = max(1, last - first)
        chosen.append(first + frame_indices(count, frame_rate, sampling))
    return chosen


def _shots(path: Path, seconds: float) -> list[tuple[float, float]]:
    try:
        scenedetect = require("scenedetect")
    except ImportError as error:
        raise ImportError(
            f'segments "shots" need PySceneDetect: pip install "garevla[shots]" ({error})'
        ) from error
    try:
        found: list[Any] = scenedetect.detect(str(path), scenedetect.AdaptiveDetector())
    # It reads files by OpenCV, in its own way; its errors and OpenCV's have no class in common.
    except Exception as error:
        raise VideoError.of(path, f"no shots can be found: {first_line(error)}") from error
    cuts = [float(shot[0].seconds) for shot in found[1:]]
    bounds = [0.0, *(cut for cut in cuts if 0 < cut < seconds), seconds]
    return list(itertools.pairwise(bounds))
