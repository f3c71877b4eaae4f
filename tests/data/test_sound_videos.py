"""Not one sound file is refused, whatever its codec, container, length or frame rate."""

from __future__ import annotations

import itertools
from pathlib import Path

import av
import numpy as np
import pytest

from garevla.data import Sampling, frame_indices, read_frames
from garevla.data.video import check_video
from tests.data.clips import SOUND, frame_numbers, write_clip

ALL = Sampling(100, frames_per_second=1000)


def write_sound(path: Path, num_frames: int, **options: object) -> Path:
    """Write a clip; skip where this FFmpeg has no encoder for it."""
    try:
        return write_clip(path, num_frames, **options)
    except av.error.EncoderNotFoundError:
        pytest.skip(f"no encoder {options['codec']}")
    except ValueError as error:  # before PyAV 14
        pytest.skip(str(error))


@pytest.mark.parametrize("num_frames", [1, 2, 23])
@pytest.mark.parametrize("name", SOUND)
def test_sound_files_are_read_whole(tmp_path, name, num_frames):
    path = write_sound(tmp_path / name, num_frames, **SOUND[name])
    assert check_video(path, Sampling(4)).reason is None
    frames = read_frames(path, ALL)
    assert len(frames) == num_frames
    assert frame_numbers(frames) == list(range(num_frames))
    some = read_frames(path, Sampling(5, "resample"))
    np.testing.assert_array_equal(
        some, frames[frame_indices(num_frames, 1, Sampling(5, "resample"))]
    )


CODECS = {
    "libx264": (".mp4", ".mov", ".mkv", ".avi", ".ts", ".flv"),
    "libx265": (".mp4", ".mkv"),
    "libvpx": (".webm", ".mkv"),
    "libvpx-vp9": (".webm", ".mp4"),
    "libsvtav1": (".mp4", ".webm"),
    "mpeg4": (".avi", ".mp4", ".mkv"),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("codec", "suffix"), [(codec, suffix) for codec in CODECS for suffix in CODECS[codec]]
)
def test_many_sound_files_are_read_whole(tmp_path, codec, suffix):
    # FFmpeg does not recognize a transport stream of a few hundred bytes.
    lengths = (20, 61) if suffix == ".ts" else (1, 2, 3, 7, 61)
    settings = itertools.product(lengths, (0.5, 12, 23.976, 60), (1, 5, 250))
    for number, (num_frames, rate, key_frame_every) in enumerate(settings):
        path = write_sound(
            tmp_path / f"{number}{suffix}",
            num_frames,
            codec=codec,
            rate=rate,
            key_frame_every=key_frame_every,
            size=(64, 64),
            noise=number % 3 * 8,
        )
        assert check_video(path, Sampling()).reason is None
        assert len(read_frames(path, ALL)) == num_frames
