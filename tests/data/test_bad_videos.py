"""A file that is no sound video is an error that names it and its reason."""

from __future__ import annotations

import pickle
import re

import numpy as np
import pytest

from garevla.data import Sampling, VideoError, read_frames
from garevla.data.video import check_video
from tests.data.bad_files import (
    BAD_FILES,
    empty,
    folder,
    header_at_end_lost,
    sound_only,
    text,
    without_first_key_frame,
)


@pytest.mark.parametrize("make", BAD_FILES, ids=lambda make: make.__name__)
def test_a_bad_file_is_an_error_that_names_it(tmp_path, write_video, cut, make):
    path = make(tmp_path / "bad.mp4", write_video=write_video, cut=cut)
    with pytest.raises(VideoError) as caught:
        read_frames(path)
    assert caught.value.path == path
    assert str(caught.value) == f"{path}: {caught.value.reason}"
    assert check_video(path, Sampling()).reason
    for reason in (caught.value.reason, check_video(path, Sampling()).reason):
        assert reason.strip()
        assert "\n" not in reason


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (sound_only, "no video in it, only audio"),
        (text, "not a video"),
        (empty, "the file is empty (0 bytes)"),
        (folder, "not a file"),
        (header_at_end_lost, "truncated: its container declares "),
        (without_first_key_frame, "does not start with a key frame"),
    ],
)
def test_the_reason_is_told(tmp_path, write_video, cut, make, reason):
    path = make(tmp_path / "bad.mp4", write_video=write_video, cut=cut)
    with pytest.raises(VideoError, match=re.escape(reason)):
        read_frames(path)


def test_a_file_that_may_not_be_read(tmp_path, write_video, monkeypatch):
    path = write_video(tmp_path / "video.mp4", 4)
    # Not by chmod: root may read all.
    monkeypatch.setattr(type(path), "open", lambda *_: (_ for _ in ()).throw(PermissionError(13)))
    with pytest.raises(VideoError, match=r"video\.mp4: permission denied$"):
        read_frames(path)


def test_an_image_is_no_video(tmp_path):
    Image = pytest.importorskip("PIL.Image")
    Image.new("RGB", (64, 48)).save(tmp_path / "image.mp4", format="jpeg")
    with pytest.raises(VideoError, match="an image or a text, not a video"):
        read_frames(tmp_path / "image.mp4")


def test_a_part_that_a_decoder_makes_up_is_found(tmp_path, write_video):
    path = write_video(tmp_path / "video.mp4", 64, noise=20, faststart=True)
    content = bytearray(path.read_bytes())
    for place in range(len(content) // 2, len(content), 200):
        content[place] ^= 0x55
    path.write_bytes(content)
    verdict = check_video(path, Sampling())
    assert re.match(r"damaged: \d+ of 64 frames cannot be decoded without errors", verdict.reason)


@pytest.mark.parametrize(
    ("name", "options"),
    [("h264.mkv", {}), ("vp8.webm", {"codec": "libvpx"}), ("frames.avi", {"bf": "2"})],
)
def test_a_hole_over_several_frames_is_found(tmp_path, write_video, name, options):
    path = write_video(tmp_path / name, 64, noise=20, **options)
    content = path.read_bytes()
    start, length = len(content) // 3, len(content) // 6
    for filling in (bytes(length), np.random.default_rng(0).bytes(length)):
        path.write_bytes(content[:start] + filling + content[start + length :])
        assert re.match(r"damaged|truncated", check_video(path, Sampling()).reason)


def test_the_error_survives_pickling_and_being_rebuilt_from_its_message(tmp_path):
    with pytest.raises(VideoError) as caught:
        read_frames(tmp_path / "gone.mp4")
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (str(copy), copy.path) == (str(caught.value), tmp_path / "gone.mp4")
    assert str(VideoError("a message")) == "a message"
