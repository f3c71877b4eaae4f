"""The frames asked for are read, the same by decord and by PyAV."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from garevla.data import (
    Sampling,
    VideoError,
    decord_reader,
    frame_indices,
    pyav_reader,
    read_frames,
)
from garevla.data.frame_sampling import TimeRange
from garevla.data.video import Verdict, check_video
from tests.data.clips import copied

# What is said of both readers; that PyAV alone is enough, other files say, too.
decord = pytest.importorskip("decord")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("plain.mp4", {}),
        ("faststart.mp4", {"faststart": True}),
        ("one_key_frame.mp4", {"key_frame_every": 250}),
        ("no_b_frames.mp4", {"bf": "0"}),
        ("quick.mov", {}),
        ("matroska.mkv", {}),
        ("old.avi", {"codec": "mpeg4", "bf": "0"}),
        ("web.webm", {"codec": "libvpx"}),
        ("UPPER.MP4", {}),
    ],
)
def test_the_frames_asked_for_are_read(tmp_path, write_video, frame_numbers, name, options):
    path = write_video(tmp_path / name, 60, **options)
    frames = read_frames(path)
    assert frames.dtype == np.uint8
    assert frames.shape == (8, 48, 64, 3)
    assert frame_numbers(frames) == list(range(0, 60, 8))
    assert frame_numbers(read_frames(path, Sampling(3))) == [0, 24, 56]
    assert check_video(path, Sampling()) == Verdict(None, length_is_known=True)


@pytest.mark.parametrize("mode", ["grid", "resample"])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("h264.mp4", {}),
        ("shown_from_3_on.mkv", {"key_frame_every": 8}),
        ("old.avi", {"codec": "mpeg4", "bf": "0"}),
        ("web.webm", {"codec": "libvpx"}),
        ("odd.mp4", {"size": (51, 67), "pix_fmt": "yuv444p"}),
        ("ntsc.mov", {"rate": 29.97}),
    ],
)
def test_both_readers_give_the_same_frames(tmp_path, write_video, name, options, mode):
    path = write_video(tmp_path / name, 60, noise=10, **options)
    sampling = Sampling(7, mode)
    frames = decord_reader.read(path, sampling)
    decoded = pyav_reader.decode(path, sampling, pyav_reader.list_packets(path))
    assert decoded.num_frames == 60
    np.testing.assert_array_equal(decoded.frames, frames)


def test_both_readers_keep_within_a_range_of_time(tmp_path, write_video, frame_numbers):
    path = write_video(tmp_path / "clip.mp4", 60)  # 8 frames a second
    sampling = Sampling(4, "resample", time_range=TimeRange(2.0, 4.0))
    packets = pyav_reader.list_packets(path)
    for frames in (
        read_frames(path, sampling),
        decord_reader.read(path, sampling),
        pyav_reader.decode(path, sampling, packets).frames,
    ):
        assert frame_numbers(frames) == [16, 21, 26, 31]
    with pytest.raises(VideoError, match=r"clip.mp4: no frame from second 8 to 9: it ends after"):
        read_frames(path, sampling.within(TimeRange(8, 9)))


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_both_readers_turn_what_was_filmed_upright(tmp_path, write_video, degrees):
    source = write_video(tmp_path / "source.mp4", 9, noise=10)
    path = copied(source, tmp_path / "turned.mp4", degrees=degrees)
    plain, turned = read_frames(source), read_frames(path)
    decoded = pyav_reader.decode(path, Sampling(), pyav_reader.list_packets(path))
    np.testing.assert_array_equal(decoded.frames, turned)
    np.testing.assert_array_equal(turned, np.rot90(plain, degrees // 90, axes=(1, 2)))
    assert check_video(path, Sampling()).reason is None


def test_frames_per_second_and_odd_rates(tmp_path, write_video, frame_numbers):
    path = write_video(tmp_path / "ntsc.mp4", 70, rate=29.97)
    assert frame_numbers(read_frames(path)) == [0, 30, 60]
    dense = read_frames(path, Sampling(frames_per_second=3))
    assert frame_numbers(dense) == [0, 10, 20, 30, 40, 50, 60]
    slow = write_video(tmp_path / "slow.mp4", 4, rate=0.5)
    assert frame_numbers(read_frames(slow)) == [0, 1, 2, 3]


def test_resampling_repeats_the_frames_of_a_short_video(tmp_path, write_video, frame_numbers):
    path = write_video(tmp_path / "short.mp4", 3)
    frames = read_frames(path, Sampling(7, "resample"))
    assert frame_numbers(frames) == [0, 0, 0, 1, 1, 1, 2]
    long = write_video(tmp_path / "long.mp4", 50)
    frames = read_frames(long, Sampling(5, "resample"))
    assert frame_numbers(frames) == [0, 12, 24, 36, 49]


@pytest.mark.parametrize("mode", ["grid", "resample"])
def test_a_video_of_one_frame(tmp_path, write_video, mode):
    path = write_video(tmp_path / "one.mp4", 1)
    frames = read_frames(path, Sampling(1, mode))
    assert frames.shape == (1, 48, 64, 3)


@pytest.mark.parametrize("mode", ["grid", "resample"])
def test_only_sampled_frames_are_asked_of_the_decoder(tmp_path, write_video, monkeypatch, mode):
    path = write_video(tmp_path / "video.mp4", 60)
    asked: list[int] = []
    get_batch = decord.VideoReader.get_batch

    def recorded(self, indices):
        asked.extend(int(i) for i in indices)
        return get_batch(self, indices)

    def refused(self, *_):
        raise AssertionError("a frame was read one by one")

    monkeypatch.setattr(decord.VideoReader, "get_batch", recorded)
    monkeypatch.setattr(decord.VideoReader, "next", refused)
    read_frames(path, Sampling(5, mode))
    expected = frame_indices(60, 8.0, Sampling(5, mode))
    assert asked == expected.tolist()


def test_a_program_that_has_decord_return_tensors(tmp_path, write_video):
    path = write_video(tmp_path / "video.mp4", 10)
    expected = read_frames(path)
    with decord.bridge.use_torch():
        frames = read_frames(path)
    assert isinstance(frames, np.ndarray)
    np.testing.assert_array_equal(frames, expected)


def test_a_clip_cut_between_key_frames_shows_what_is_shown_of_it(
    tmp_path, write_video, frame_numbers
):
    path = copied(write_video(tmp_path / "source.mp4"), tmp_path / "cut.mp4", later=-20)
    assert frame_numbers(read_frames(path)) == [20, 28, 36, 44, 52, 60]


def test_pyav_alone_is_enough(tmp_path, write_video, monkeypatch):
    path = write_video(tmp_path / "video.mp4", 20)
    frames = read_frames(path)
    monkeypatch.setitem(sys.modules, "decord", None)
    np.testing.assert_array_equal(read_frames(path), frames)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ImportError, match=r'av cannot .* pip install "garevla\[video\]"'):
        read_frames(path)
