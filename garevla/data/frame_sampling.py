"""Which frames are taken of a video."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

SamplingMode = Literal["grid", "resample"]

# A batch has room for so many frames of every video.
_MOST_FRAMES = 1024


def _check_rate(name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be positive and finite, got {value}")


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

    Raises:
        ValueError: a value out of its range.
    """

    max_frames: int = 12
    mode: SamplingMode = "grid"
    frames_per_second: float = 1.0

    def __post_init__(self) -> None:
        if self.max_frames < 1:
            raise ValueError(f"max_frames must be at least 1, got {self.max_frames}")
        if self.max_frames > _MOST_FRAMES:
            raise ValueError(f"max_frames must be at most {_MOST_FRAMES}, got {self.max_frames}")
        if self.mode not in ("grid", "resample"):
            raise ValueError(f"sampling mode must be 'grid' or 'resample', got {self.mode!r}")
        _check_rate("frames_per_second", self.frames_per_second)

    def as_settings(self) -> dict[str, Any]:
        """The values by the names of the flat settings, as journals and caches record them."""
        return {
            "max_frames": self.max_frames,
            "sampling": self.mode,
            "frames_per_second": self.frames_per_second,
        }

    @classmethod
    def from_settings(cls, settings: dict[str, Any]) -> Sampling:
        """The sampling of what :meth:`as_settings` returned."""
        return cls(settings["max_frames"], settings["sampling"], settings["frames_per_second"])


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
        frame_rate: frames per second of the video; unused by mode ``"resample"``.
        sampling: which frames.

    Returns:
        int64, sorted; between 1 and ``sampling.max_frames`` of them.

    Raises:
        ValueError: an argument out of its range.
    """
    if num_frames < 1:
        raise ValueError(f"num_frames must be at least 1, got {num_frames}")
    if sampling.mode == "resample":
        return _evenly_spread(num_frames, sampling.max_frames)
    _check_rate("frame_rate", frame_rate)
    grid = np.arange(0, num_frames, max(1, round(frame_rate / sampling.frames_per_second)))
    if len(grid) > sampling.max_frames:
        grid = grid[_evenly_spread(len(grid), sampling.max_frames)]
    return grid.astype(np.int64)


def _evenly_spread(length: int, count: int) -> np.ndarray:
    return np.linspace(0, length - 1, count).astype(np.int64)
