"""What decord or PyAV gets wrong is read with the other, or is an error."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest

from garevla.data import Sampling, VideoError, decord_reader, frame_indices, read_frames
from garevla.data.video import Verdict, check_video
from tests.data.bad_files import without_first_key_frame

# What is said of both readers; that PyAV alone is enough, other files say, too.
decord = pytest.importorskip("decord")


def test_what_decord_would_mix_up_is_read_with_pyav(tmp_path, write_video, frame_numbers):
    # B-frames in an AVI file have no time stamps.
    path = write_video(tmp_path / "video.avi", bf="2")
    with pytest.raises(VideoError, match="without valid time stamps"):
        decord_reader.read(path, Sampling())
    assert frame_numbers(read_frames(path)) == list(range(0, 64, 8))
    assert check_video(path, Sampling()).reason is None


def test_unset_time_stamps_are_refused(tmp_path, write_video, monkeypatch):
    path = write_video(tmp_path / "video.mkv", 30)
    times = decord.VideoReader.get_frame_timestamp

    def unset(self, indices):
        found = times(self, indices)
        found[-1] = 9.2e15
        return found

    monkeypatch.setattr(decord.VideoReader, "get_frame_timestamp", unset)
    with pytest.raises(VideoError, match="without valid time stamps"):
        decord_reader.read(path, Sampling())


def test_frames_of_two_decoders_that_differ_are_found(tmp_path, write_video, monkeypatch):
    path = write_video(tmp_path / "video.mp4", 30)
    frames = decord_reader.read(path, Sampling())
    monkeypatch.setattr(decord_reader, "read", lambda *_: frames[::-1])
    reason = "damaged: decord and PyAV decode it to different frames"
    assert check_video(path, Sampling()) == Verdict(reason)


def test_decoders_write_nothing_to_stderr(tmp_path, write_video, capfd):
    paths = [write_video(tmp_path / "video.mp4", 64, noise=20, faststart=True)]
    content = bytearray(paths[0].read_bytes())
    content[len(content) // 2 :: 50] = bytes(len(content[len(content) // 2 :: 50]))
    for name, data in (("damaged.mp4", content), ("text.mp4", b"text\n" * 500)):
        paths.append(tmp_path / name)
        paths[-1].write_bytes(data)
    for path in paths:
        with contextlib.suppress(VideoError):
            read_frames(path)
    assert capfd.readouterr() == ("", "")


def test_frames_that_decord_would_make_up_from_others_are_an_error(
    tmp_path, write_video, monkeypatch
):
    path = without_first_key_frame(tmp_path / "video.mp4", write_video=write_video)
    # Past the check that stops this file already: it holds fewer frames than packets.
    monkeypatch.setattr(decord.VideoReader, "get_key_indices", lambda self: [0])
    with pytest.raises(VideoError, match="duplicate frames"):
        decord_reader.read(path, Sampling(64, "resample"))


def test_a_decoder_that_returns_too_little_is_an_error(tmp_path, write_video, monkeypatch):
    path = write_video(tmp_path / "video.mp4", 30)
    monkeypatch.setattr(
        decord.VideoReader, "get_batch", lambda self, indices: np.zeros((1, 48, 64, 3), np.uint8)
    )
    with pytest.raises(VideoError, match=r"expected \(4, height, width, 3\)"):
        decord_reader.read(path, Sampling())


@pytest.mark.parametrize("mode", ["grid", "resample"])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("h264.mp4", {"x264-params": "open-gop=1:bframes=5:b-adapt=0:scenecut=0"}),
        ("hevc.mkv", {"codec": "libx265"}),
        ("mpeg4.mp4", {"codec": "mpeg4", "bf": "2"}),
    ],
)
def test_open_groups_of_pictures(tmp_path, write_video, frame_numbers, name, options, mode):
    """Where decord takes frames beside those it is asked for."""
    path = write_video(tmp_path / name, 64, key_frame_every=10, **options)
    sampling = Sampling(7, mode)
    assert frame_numbers(read_frames(path, sampling)) == frame_indices(64, 8, sampling).tolist()
    assert frame_numbers(decord_reader.read(path, sampling)) != (
        frame_indices(64, 8, sampling).tolist()
    )
    assert check_video(path, sampling).reason is None
