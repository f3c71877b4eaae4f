"""Which frames are taken of a video."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

SamplingMode = Literal["grid", "resample"]

# A batch has room for so many frames of every video.
_MOST_FRAMES = 1024


def _check_rate(name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be positive and finite, got {value}")


class TimeRange(NamedTuple):
    """A part of a video: what is shown from ``start`` to ``end``, in seconds."""

    start: float
    end: float

    def check(self) -> None:
        """Check that there is such a part.

        Raises:
            ValueError: a time is negative or not finite, or the end is not after the start.
        """
        if not 0 <= self.start < self.end < math.inf:
            raise ValueError(
                f"a range of time must have 0 <= start < end, in seconds, got {self.start} and "
                f"{self.end}"
            )


@dataclass(frozen=True)
class Sampling:
    """Which frames are taken of a video.

    Attributes:
        max_frames: the most frames taken, at least 1 and at most 1024.
        mode: ``"grid"`` takes every ``round(frame_rate / frames_per_second)``-th frame (at least
            every one), and of those ``max_frames`` evenly spread ones if they are more.
            ``"resample"`` takes ``max_frames`` frames evenly spread over all, repeating some of
            a shorter video.
        frames_per_second: density of the grid, in frames per second of video.
        time_range: the part of the video that is taken for all of it, or None. Frames count as
            equally long, also where they are not.

    Raises:
        ValueError: a value out of its range.
    """

    max_frames: int = 12
    mode: SamplingMode = "grid"
    frames_per_second: float = 1.0
    time_range: TimeRange | None = None

    def __post_init__(self) -> None:
        if self.max_frames < 1:
            raise ValueError(f"max_frames must be at least 1, got {self.max_frames}")
        if self.max_frames > _MOST_FRAMES:
            raise ValueError(f"max_frames must be at most {_MOST_FRAMES}, got {self.max_frames}")
        if self.mode not in ("grid", "resample"):
            raise ValueError(f"sampling mode must be 'grid' or 'resample', got {self.mode!r}")
        _check_rate("frames_per_second", self.frames_per_second)
        if self.time_range is not None:
            self.time_range.check()

    @property
    def needs_frame_rate(self) -> bool:
        """Whether the frames taken depend on the frame rate."""
        return self.mode == "grid" or self.time_range is not None

    def within(self, time_range: TimeRange | None) -> Sampling:
        """The same, of a part of the video."""
        return dataclasses.replace(self, time_range=time_range)

    def as_settings(self) -> dict[str, Any]:
        """The values by the names of the flat settings, as journals and caches record them."""
        settings = {
            "max_frames": self.max_frames,
            "sampling": self.mode,
            "frames_per_second": self.frames_per_second,
        }
        return settings if self.time_range is None else {**settings, "time_range": self.time_range}

    @classmethod
    def from_settings(cls, settings: dict[str, Any]) -> Sampling:
        """The sampling of what :meth:`as_settings` returned."""
        time_range = settings.get("time_range")
        return cls(
            settings["max_frames"],
            settings["sampling"],
            settings["frames_per_second"],
            None if time_range is None else TimeRange(*time_range),
        )


DEFAULT_SAMPLING = Sampling()


@dataclass(kw_only=True)
class SamplingSettings:
    """:class:`Sampling` as flat settings of a command, which its settings derive from."""

    max_frames: int = DEFAULT_SAMPLING.max_frames
    """The most frames taken of a video. Pseudo captions must be made with the max_frames, sampling
    and frames_per_second of training."""
    sampling: SamplingMode = DEFAULT_SAMPLING.mode
    """grid: one frame per 1/frames_per_second, thinned to max_frames, padded where fewer;
    resample: always max_frames frames, evenly spread."""
    frames_per_second: float = DEFAULT_SAMPLING.frames_per_second
    """Frames per second of video on the grid."""

    @property
    def frame_sampling(self) -> Sampling:
        """The three settings in one.

        Raises:
            ValueError: a setting out of its range.
        """
        return Sampling(self.max_frames, self.sampling, self.frames_per_second)


def frame_indices(
    num_frames: int, frame_rate: float, sampling: Sampling = DEFAULT_SAMPLING
) -> np.ndarray:
    """Indices of the frames to take of a video.

    Args:
        num_frames: frames in the video, at least 1.
        frame_rate: frames per second of the video; unused unless ``sampling.needs_frame_rate``.
        sampling: which frames.

    Returns:
        int64, sorted; between 1 and ``sampling.max_frames`` of them.

    Raises:
        ValueError: an argument out of its range, or a range of time that begins after the end.
    """
    if num_frames < 1:
        raise ValueError(f"num_frames must be at least 1, got {num_frames}")
    if sampling.needs_frame_rate:
        _check_rate("frame_rate", frame_rate)
    first, end = _frames_within(num_frames, frame_rate, sampling.time_range)
    if sampling.mode == "resample":
        return first + _evenly_spread(end - first, sampling.max_frames)
    grid = np.arange(first, end, max(1, round(frame_rate / sampling.frames_per_second)))
    if len(grid) > sampling.max_frames:
        grid = grid[_evenly_spread(len(grid), sampling.max_frames)]
    return grid.astype(np.int64)


def _frames_within(
    num_frames: int, frame_rate: float, time_range: TimeRange | None
) -> tuple[int, int]:
    """The first frame shown in a range of time, and the one after the last."""
    if time_range is None:
        return 0, num_frames
    # A time such as 0.29 is at its frame, 29 of 100 a second, though the product is 28.999....
    first = math.floor(time_range.start * frame_rate + 1e-6)
    if first >= num_frames:
        raise ValueError(
            f"no frame from second {time_range.start:g} to {time_range.end:g}: it ends after "
            f"{num_frames / frame_rate:.2f} seconds"
        )
    end = math.ceil(time_range.end * frame_rate - 1e-6)
    return first, min(num_frames, max(end, first + 1))


def _evenly_spread(length: int, count: int) -> np.ndarray:
    return np.linspace(0, length - 1, count).astype(np.int64)
