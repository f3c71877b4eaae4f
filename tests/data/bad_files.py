"""Files that are no sound videos; ``make(path, write_video=, cut=)`` returns the path of one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np

from tests.data.clips import copied

Make = Callable[..., Path]


def missing(path: Path, **_: Any) -> Path:
    return path


def folder(path: Path, **_: Any) -> Path:
    path.mkdir()
    return path


def empty(path: Path, **_: Any) -> Path:
    path.touch()
    return path


def text(path: Path, **_: Any) -> Path:
    path.write_text("this is not a video\n" * 500)
    return path


def sound_only(path: Path, **_: Any) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(
            np.zeros((1, 16000), dtype=np.float32), format="fltp", layout="mono"
        )
        frame.rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def header_at_end_lost(path: Path, *, write_video: Make, cut: Make) -> Path:
    return cut(write_video(path, noise=20), 0.9)


def header_first_frames_lost(share: float) -> Make:
    def make(path: Path, *, write_video: Make, cut: Make) -> Path:
        return cut(write_video(path, noise=20, faststart=True), share)

    make.__name__ = f"header_first_{share}_kept"
    return make


def overwritten_in_the_middle(path: Path, *, write_video: Make, **_: Any) -> Path:
    content = bytearray(write_video(path, noise=20, faststart=True).read_bytes())
    third = len(content) // 3
    content[third : 2 * third] = bytes(third)
    path.write_bytes(content)
    return path


def shortened_matroska(path: Path, *, write_video: Make, cut: Make) -> Path:
    return cut(write_video(path.with_suffix(".mkv"), noise=20), 0.5)


def shortened_webm(path: Path, *, write_video: Make, cut: Make) -> Path:
    return cut(write_video(path.with_suffix(".webm"), codec="libvpx", noise=20), 0.5)


def shortened_avi(path: Path, *, write_video: Make, cut: Make) -> Path:
    made = write_video(path.with_suffix(".avi"), codec="mpeg4", bf="0", noise=20)
    return cut(made, 0.5)


def without_first_key_frame(path: Path, *, write_video: Make, **_: Any) -> Path:
    source = write_video(path.with_name("source.mp4"))
    return copied(source, path, keep=lambda index: index >= 5)


def without_any_key_frame(path: Path, *, write_video: Make, **_: Any) -> Path:
    source = write_video(path.with_name("source.mp4"))
    return copied(source, path, keep=lambda index: index % 16)


BAD_FILES = [
    missing,
    folder,
    empty,
    text,
    sound_only,
    header_at_end_lost,
    *(header_first_frames_lost(share) for share in (0.03, 0.1, 0.5, 0.9)),
    overwritten_in_the_middle,
    shortened_matroska,
    shortened_webm,
    shortened_avi,
    without_first_key_frame,
    without_any_key_frame,
]
