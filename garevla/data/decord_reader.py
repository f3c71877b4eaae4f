"""Frames by decord: fast, since it seeks to what is sampled, but not always right.

decord repeats the last frame where others cannot be decoded, and takes wrong ones where it has no
usable time stamps, in streams of MPEG and ASF, and where frames that follow a key frame are shown
before it (open groups of pictures). It is for :mod:`garevla.data.video` to keep such files from it.
"""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np

from garevla.data._optional import require
from garevla.data.frame_sampling import Sampling, frame_indices
from garevla.data.messages import first_line
from garevla.data.video_errors import VideoError

# FFmpeg's names of the containers in which it finds the frame asked for.
FORMATS = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi")

# Its share of frames that it may make up from others. It takes 0 for "any number".
_NO_MADE_UP_FRAMES = "0.00000001"


def read(path: Path, sampling: Sampling) -> np.ndarray:
    """Read the sampled frames, as :func:`garevla.data.read_frames` does.

    Raises:
        VideoError: decord cannot read the file, or cannot tell which frame is which.
        ImportError: it is not installed.
    """
    decord = require("decord")
    # FFmpeg's own lines on stderr name no file; the error does.
    decord.logging.set_level(decord.logging.QUIET)
    try:
        # Several threads per file would only compete with the loader's other workers.
        reader = decord.VideoReader(str(path), num_threads=1, fault_tol=_NO_MADE_UP_FRAMES)
        key_frames = reader.get_key_indices()
        begins = reader.get_frame_timestamp(range(len(reader)))[:, 0]
        frame_rate = reader.get_avg_fps()
    except Exception as error:
        raise VideoError.of(path, f"decord cannot open it: {_brief(error)}") from error
    if not key_frames or key_frames[0] != 0:
        raise VideoError.of(path, "does not start with a key frame")
    # Unset time stamps come as ±9e15 seconds or so, in files with B-frames and in damaged ones.
    if begins[0] < 0 or begins[-1] > 1e9 or not (np.diff(begins) > 0).all():
        raise VideoError.of(path, "frames without valid time stamps, decord would mix them up")
    if sampling.needs_frame_rate and not 0 < frame_rate < math.inf:
        raise VideoError.of(path, f"no valid frame rate ({frame_rate})")
    try:
        indices = frame_indices(len(begins), frame_rate, sampling)
    except ValueError as error:
        raise VideoError.of(path, str(error)) from error
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


def _brief(error: BaseException) -> str:
    """First line of an error, without decord's source lines and the checks written there."""
    text = re.sub(r"\[[\d:]+\] \S+\.(?:cc|h):\d+: ", "", first_line(error))
    return re.sub(r"Check failed: .* \(-?\d+ vs\. -?\d+\) ", "", text)
