"""Frames of a video file. A frame is the frame asked for, or an error is raised."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from garevla.data import decord_reader, pyav_reader
from garevla.data.containers import check_elements, inspect_container
from garevla.data.frame_sampling import DEFAULT_SAMPLING, Sampling
from garevla.data.pyav_reader import Packets
from garevla.data.video_errors import VideoError

# Mean difference of a frame, of 255, beyond which two decoders have not decoded the same. Their
# conversions to RGB are the same but for more than 8 bits, where they differ by up to 5.
_SAME_FRAME = 16.0


def read_frames(path: str | os.PathLike[str], sampling: Sampling = DEFAULT_SAMPLING) -> np.ndarray:
    """Read the sampled frames of a video.

    decord reads them where it takes the right ones, because it leaves out most others; the rest,
    and all where it is not installed, PyAV reads, which decodes the whole file. Both give the same
    frames.

    Args:
        path: the video file.
        sampling: which frames.

    Returns:
        uint8 (n, height, width, 3), RGB, n at most ``sampling.max_frames``, in order of time.

    Raises:
        VideoError: the file is missing, empty, truncated or not a video, or cannot be decoded.
            Damage that a decoder passes over is found by :func:`garevla.data.check_videos` only.
        ImportError: PyAV is not installed.
    """
    path = Path(path)
    packets, _ = _inspect(path)
    frames = _read_with_decord(path, sampling, packets)
    return pyav_reader.decode(path, sampling, packets).frames if frames is None else frames


def _inspect(path: Path) -> tuple[Packets, bool]:
    """What a file consists of, and whether a missing end of it would have been noticed."""
    container = inspect_container(path)
    packets = pyav_reader.list_packets(path)
    return packets, packets.check_length(path, container)


def _read_with_decord(path: Path, sampling: Sampling, packets: Packets) -> np.ndarray | None:
    """The frames; None where decord does not read this file, or not rightly, or is not there."""
    if not packets.can_be_sought or packets.format not in decord_reader.FORMATS:
        return None
    try:
        return decord_reader.read(path, sampling)
    except (VideoError, ImportError):
        return None


class Verdict(NamedTuple):
    """What a check has found of a file.

    Attributes:
        reason: why it cannot be used; None where it can.
        length_is_known: whether a missing end would have been noticed.
    """

    reason: str | None
    length_is_known: bool = True


class Checked(NamedTuple):
    """What a check has found of a file.

    Attributes:
        verdict: whether it can be used.
        frames: what :func:`read_frames` returns of it; None where it cannot be used.
    """

    verdict: Verdict
    frames: np.ndarray | None = None


def check_video(path: Path, sampling: Sampling) -> Verdict:
    """Decode all of a file, and compare with what :func:`read_frames` takes of it.

    Raises:
        ImportError: PyAV is not installed.
    """
    return read_checked(path, sampling).verdict


def read_checked(path: Path, sampling: Sampling) -> Checked:
    """The same, keeping the frames.

    Raises:
        ImportError: PyAV is not installed.
    """
    try:
        packets, length_is_known = _inspect(path)
        check_elements(path, inspect_container(path))
        decoded = pyav_reader.decode(path, sampling, packets)
    except VideoError as error:
        return Checked(Verdict(error.reason))
    frames = _read_with_decord(path, sampling, packets)
    if frames is None:
        frames = decoded.frames
    elif not _are_same(frames, decoded.frames):
        return Checked(Verdict("damaged: decord and PyAV decode it to different frames"))
    return Checked(Verdict(None, length_is_known), frames)


def _are_same(frames: np.ndarray, others: np.ndarray) -> bool:
    if frames.shape != others.shape:
        return False
    return all(
        np.abs(a.astype(np.int16) - b).mean() <= _SAME_FRAME
        for a, b in zip(frames, others, strict=True)
    )
