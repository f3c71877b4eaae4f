"""Frames of a video file. A frame is the frame asked for, or an error is raised."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from garevla.data import decord_reader, pyav_reader
from garevla.data.containers import inspect_container
from garevla.data.frame_sampling import DEFAULT_SAMPLING, Sampling
from garevla.data.video_errors import VideoError

# Mean difference of a frame, of 255, beyond which two decoders have not decoded the same. Their
# conversions to RGB are the same but for more than 8 bits, where they differ by up to 5.
_SAME_FRAME = 16.0


def read_frames(path: str | os.PathLike[str], sampling: Sampling = DEFAULT_SAMPLING) -> np.ndarray:
    """Read the sampled frames of a video.

    decord reads what it reads right; the rest, and all where it is not installed, is read with
    PyAV, which decodes the whole file. Both give the same frames.

    Args:
        path: the video file.
        sampling: which frames.

    Returns:
        uint8 (n, height, width, 3), RGB, n at most ``sampling.max_frames``, in order of time.

    Raises:
        VideoError: the file is missing, empty, truncated or not a video, or cannot be decoded.
            Damage that a decoder passes over is found by :func:`garevla.data.check_videos` only.
        ImportError: neither decord nor PyAV is installed.
    """
    path = Path(path)
    container = inspect_container(path)
    refusal: VideoError | None = None
    if container.kind in decord_reader.CONTAINERS:
        try:
            return decord_reader.read(path, sampling)
        except VideoError as error:
            refusal = error
        except ImportError:
            pass
    try:
        return pyav_reader.read(path, sampling, container).frames
    except ImportError:
        if refusal is None:
            raise
        raise refusal from None


class Verdict(NamedTuple):
    """What a check has found of a file.

    Attributes:
        reason: why it cannot be used; None where it can.
        length_is_known: whether a missing end would have been noticed.
    """

    reason: str | None
    length_is_known: bool = True


def check_video(path: Path, sampling: Sampling) -> Verdict:
    """Decode all of a file, and compare with what :func:`read_frames` takes of it.

    Raises:
        ImportError: PyAV is not installed.
    """
    try:
        container = inspect_container(path)
        decoded = pyav_reader.read(path, sampling, container)
    except VideoError as error:
        return Verdict(error.reason)
    if container.kind in decord_reader.CONTAINERS:
        try:
            frames = decord_reader.read(path, sampling)
        except (VideoError, ImportError):
            return Verdict(None, decoded.length_is_known)
        if not _are_same(frames, decoded.frames):
            return Verdict("damaged: decord and PyAV decode it to different frames")
    return Verdict(None, decoded.length_is_known)


def _are_same(frames: np.ndarray, others: np.ndarray) -> bool:
    if frames.shape != others.shape:
        return False
    return all(
        np.abs(a.astype(np.int16) - b).mean() <= _SAME_FRAME
        for a, b in zip(frames, others, strict=True)
    )
