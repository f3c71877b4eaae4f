"""Damaged videos: named, harmless, said to be of unknown length, or decoded to other pictures."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np

from garevla.data import Sampling, VideoError, read_frames
from garevla.data.video import check_video
from tests.data.clips import SOUND, write_clip
from tests.fuzz.isolated import Failure, Isolated
from tests.fuzz.mutations import MUTATIONS

# Mean difference of a frame, of 255, from which on it counts as another picture.
_OTHER = 10.0

_NUM_FRAMES = 48

# All four containers, the common codecs, index first and last, whole and in fragments.
_NAMES = (
    *("plain.mp4", "faststart.m4v", "fragmented.mp4", "hevc.mp4", "av1.mp4"),
    *("one_key_frame.mkv", "changing_rate.mkv", "hevc.mkv", "stream.mkv"),
    *("vp8.webm", "vp9.webm", "av1.webm", "mpeg4.avi", "b_frames.avi", "mjpeg.avi"),
)


class _Clip(NamedTuple):
    name: str
    content: bytes
    frames: np.ndarray  # those that are sampled
    ends: list[int]  # where the bytes of each frame end


class Found(NamedTuple):
    """What became of a file, from :func:`try_video`."""

    reason: str | None
    length_is_known: bool
    difference: float | None  # largest of a frame; None where none was read


def try_video(path: Path, expected: np.ndarray) -> Found:
    """Check a file, and read it as training does."""
    verdict = check_video(path, Sampling())
    try:
        frames = read_frames(path)
    except VideoError:
        return Found(*verdict, None)
    if frames.shape != expected.shape:
        return Found(*verdict, 255.0)
    difference = np.abs(frames.astype(np.int16) - expected).mean((1, 2, 3)).max()
    return Found(*verdict, float(difference))


def trials(generator: np.random.Generator) -> Iterator[str]:
    """Damage videos without end; yield what came of each.

    Raises:
        Failure: a crash, a hang, a traceback or silent damage beyond what is stated.
    """
    isolated = Isolated(try_video)
    with tempfile.TemporaryDirectory() as folder:
        try:
            clips = [_make(Path(folder), name) for name in _NAMES]
            while True:
                clip = clips[int(generator.integers(len(clips)))]
                mutation = str(generator.choice(list(MUTATIONS)))
                content = MUTATIONS[mutation](clip.content, generator)
                path = Path(folder, f"damaged{Path(clip.name).suffix}")
                path.write_bytes(content)
                try:
                    found = isolated(path, clip.frames)
                    outcome = _outcome(clip, mutation, len(content), found)
                except Failure as failure:
                    yield f"videos, {clip.name}, {mutation}: FAILURE {failure}"
                    continue
                yield f"videos, {clip.name}, {mutation}: {outcome}"
        finally:
            isolated.close()


def _make(folder: Path, name: str) -> _Clip:
    options: dict[str, Any] = {"size": (64, 64), "noise": 12, **SOUND[name]}
    path = write_clip(folder / name, _NUM_FRAMES, **options)
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        ends = [packet.pos + packet.size for packet in packets]
    return _Clip(name, path.read_bytes(), read_frames(path), ends)


def _outcome(clip: _Clip, mutation: str, size: int, found: Found) -> str:
    if found.reason is not None:
        return "named"
    if found.difference is None:
        raise Failure("traceback: the check passes a file that cannot be read")
    lost = sum(end > size for end in clip.ends) / len(clip.ends)
    if mutation == "truncation" and lost > 0.05:
        if found.length_is_known:
            raise Failure(f"silent: {lost:.0%} of the frames are gone")
        return "of unknown length, and said to be"
    if found.difference > _OTHER:
        return "another picture, which no decoder noticed"
    return "harmless"
