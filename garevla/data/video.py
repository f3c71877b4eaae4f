"""Frames of a video file, read with decord. A frame is the frame asked for, or an error is raised.

decord itself is more lenient: it repeats the last frame where others cannot be decoded, shortens
a truncated Matroska or AVI file, and takes wrong frames where it has no usable time stamps.
"""

from __future__ import annotations

import math
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from garevla.data._optional import require
from garevla.data.frame_sampling import DEFAULT_SAMPLING, Sampling, frame_indices
from garevla.data.messages import first_line

if TYPE_CHECKING:
    from decord import VideoReader

# Containers whose truncation goes unnoticed when their packets are listed. Those of the MP4 family
# have the size of every packet in their header.
_SILENTLY_SHORTENED = (".mkv", ".webm", ".avi")

# decord's share of frames that it may make up from others. It takes 0 for "any number".
_NO_MADE_UP_FRAMES = "0.00000001"


class VideoError(RuntimeError):
    """A video file that cannot be read.

    Attributes:
        path: the file; None once the error has passed through a worker of a DataLoader, which
            keeps the message only. The message names the file and the reason.
    """

    # One argument must be enough: a DataLoader rebuilds errors of its workers from the message.
    def __init__(self, message: str, path: Path | None = None) -> None:
        super().__init__(message)
        self.path = path

    @classmethod
    def of(cls, path: Path, reason: str) -> VideoError:
        """Return the error for a file and a reason."""
        return cls(f"{path}: {reason}", path)

    @property
    def reason(self) -> str:
        """The message without the file."""
        return str(self).removeprefix(f"{self.path}: ")


def read_frames(path: str | os.PathLike[str], sampling: Sampling = DEFAULT_SAMPLING) -> np.ndarray:
    """Read the sampled frames of a video, and no others.

    Args:
        path: the video file.
        sampling: which frames.

    Returns:
        uint8 (n, height, width, 3), RGB, n at most ``sampling.max_frames``, in order of time.

    Raises:
        VideoError: the file is missing, empty, truncated or not a video, a sampled frame cannot
            be decoded, or decord cannot tell which frame is which.
        ImportError: decord is not installed.
    """
    path = Path(path)
    reader = _open(path)
    frame_rate = reader.get_avg_fps()
    if sampling.mode == "grid" and not 0 < frame_rate < math.inf:
        raise VideoError.of(path, f"no valid frame rate ({frame_rate})")
    indices = frame_indices(len(reader), frame_rate, sampling)
    distinct, position = np.unique(indices, return_inverse=True)
    try:
        frames = reader.get_batch(distinct)
    except Exception as error:
        raise VideoError.of(path, f"frames cannot be decoded: {_brief(error)}") from error
    # A torch tensor where the program has set decord's bridge to torch.
    frames = frames.asnumpy() if hasattr(frames, "asnumpy") else np.asarray(frames)
    count = len(distinct)
    if frames.ndim != 4 or len(frames) != count or frames.shape[-1] != 3 or not frames.size:
        raise VideoError.of(
            path, f"decoded to shape {frames.shape}, expected ({count}, height, width, 3)"
        )
    return frames if count == len(indices) else frames[position]


def decode_all_frames(path: str | os.PathLike[str]) -> int:
    """Decode every frame of a video, keeping none.

    :func:`read_frames` leaves the other frames' data unread, or has decord read ahead into it; so
    only a file that passes here is sure to be read without error every time.

    Returns:
        The number of frames.

    Raises:
        VideoError, ImportError: as :func:`read_frames`.
    """
    path = Path(path)
    reader = _open(path)
    for index in range(len(reader)):
        try:
            reader.next()
        except Exception as error:
            raise VideoError.of(
                path, f"frame {index} of {len(reader)} cannot be decoded: {_brief(error)}"
            ) from error
    return len(reader)


def _open(path: Path) -> VideoReader:
    decord = require("decord")
    try:
        size = path.stat().st_size
    except OSError as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else str(error)
        raise VideoError.of(path, reason) from error
    if not path.is_file():
        raise VideoError.of(path, "not a file")
    if size == 0:
        raise VideoError.of(path, "the file is empty (0 bytes)")
    try:
        # Several threads per file would only compete with the loader's other workers.
        reader = decord.VideoReader(str(path), num_threads=1, fault_tol=_NO_MADE_UP_FRAMES)
        key_frames = reader.get_key_indices()
        first, last = reader.get_frame_timestamp([0, len(reader) - 1])
    except Exception as error:
        raise VideoError.of(path, f"truncated, damaged or not a video: {_brief(error)}") from error
    if not key_frames or key_frames[0] != 0:
        raise VideoError.of(path, "does not start with a key frame")
    # Seen in AVI and MPEG files with B-frames, and in clips cut without being encoded anew.
    if first[0] < 0:
        raise VideoError.of(
            path, "frames without valid time stamps, decord would mix them up; encode it anew"
        )
    if path.suffix.lower() in _SILENTLY_SHORTENED:
        _check_length(path, end=float(last[1]))
    return reader


def _check_length(path: Path, end: float) -> None:
    """Compare the last frame's end, in seconds, with the length that the header declares."""
    av = require("av")
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            start = float((stream.start_time or 0) * stream.time_base)
            declared = _seconds(stream.metadata.get("DURATION", ""))
            if not declared and stream.frames and stream.average_rate:
                declared = float(stream.frames / stream.average_rate)
            if not declared:
                declared = (container.duration or 0) / av.time_base
    except (av.FFmpegError, IndexError) as error:
        raise VideoError.of(path, f"damaged header: {_brief(error)}") from error
    # Headers are a little off in good files too, and another stream may be the longest.
    if start + end < declared - max(1.0, 0.02 * declared):
        raise VideoError.of(
            path, f"truncated: it ends after {start + end:.1f} of {declared:.1f} seconds"
        )


def _seconds(duration: str) -> float:
    """Seconds in Matroska's ``hours:minutes:seconds``; 0 for anything else."""
    match = re.fullmatch(r"(\d+):(\d+):(\d+(?:\.\d+)?)", duration)
    if match is None:
        return 0.0
    hours, minutes, seconds = map(float, match.groups())
    return 3600 * hours + 60 * minutes + seconds


def _brief(error: BaseException) -> str:
    """First line of an error, without decord's source lines and the checks written there."""
    text = re.sub(r"\[[\d:]+\] \S+\.(?:cc|h):\d+: ", "", first_line(error))
    return re.sub(r"Check failed: .* \(-?\d+ vs\. -?\d+\) ", "", text)
