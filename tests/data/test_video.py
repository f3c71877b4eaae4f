from __future__ import annotations

import contextlib
import dataclasses
import pickle
import re
import sys

import av
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
from garevla.data.frame_sampling import SamplingSettings, TimeRange
from garevla.data.video import Verdict, check_video

# What is said of both readers; that PyAV alone is enough, other files say, too.
decord = pytest.importorskip("decord")

# ------------------------------------------------------------------------- sampling


@pytest.mark.parametrize("num_frames", [1, 2, 7, 25, 240, 899])
@pytest.mark.parametrize("frame_rate", [0.5, 1, 8, 23.976, 29.97, 60])
@pytest.mark.parametrize("max_frames", [1, 2, 12])
@pytest.mark.parametrize("frames_per_second", [0.5, 1, 3])
def test_grid_indices_are_a_regular_grid_thinned_evenly(
    num_frames, frame_rate, max_frames, frames_per_second
):
    sampling = Sampling(max_frames, frames_per_second=frames_per_second)
    indices = frame_indices(num_frames, frame_rate, sampling)
    stride = max(1, round(frame_rate / frames_per_second))
    grid = list(range(0, num_frames, stride))
    assert indices.dtype == np.int64
    assert len(indices) == min(len(grid), max_frames)
    assert set(indices) <= set(grid)
    assert (np.diff(indices) > 0).all()
    assert indices[0] == 0
    if max_frames > 1:
        assert indices[-1] == grid[-1]
        steps = np.diff(indices) // stride
        assert len(steps) == 0 or np.ptp(steps) <= 1


@pytest.mark.parametrize("num_frames", [1, 2, 11, 12, 13, 240])
@pytest.mark.parametrize("max_frames", [1, 5, 12])
def test_resampled_indices_are_as_many_as_asked_for(num_frames, max_frames):
    indices = frame_indices(num_frames, 25.0, Sampling(max_frames, "resample"))
    assert indices.dtype == np.int64
    assert indices.tolist() == np.linspace(0, num_frames - 1, max_frames).astype(int).tolist()


def test_grid_of_known_videos():
    ntsc = frame_indices(300, 29.97)
    assert ntsc.tolist() == list(range(0, 300, 30))
    slow = frame_indices(5, 0.5)
    assert slow.tolist() == [0, 1, 2, 3, 4]
    half_a_minute = frame_indices(900, 30)
    assert (half_a_minute // 30).tolist() == [0, 2, 5, 7, 10, 13, 15, 18, 21, 23, 26, 29]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"num_frames": 0}, "num_frames"),
        ({"frame_rate": 0.0}, "frame_rate"),
        ({"frame_rate": float("nan")}, "frame_rate"),
    ],
)
def test_arguments_out_of_range_are_named(arguments, named):
    with pytest.raises(ValueError, match=named):
        frame_indices(**{"num_frames": 9, "frame_rate": 8.0, **arguments})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_frames": 0}, "max_frames must be at least 1, got 0"),
        ({"frames_per_second": 0.0}, "frames_per_second must be positive and finite, got 0.0"),
        ({"frames_per_second": float("inf")}, "frames_per_second must be positive"),
        ({"mode": "random"}, "mode must be 'grid' or 'resample', got 'random'"),
    ],
)
def test_senseless_samplings_cannot_be_made(values, message):
    with pytest.raises(ValueError, match=message):
        Sampling(**values)


@pytest.mark.parametrize(
    ("time_range", "first", "end"),
    [
        ((0.0, 30.0), 0, 300),
        ((0.29, 3.0), 2, 30),
        ((0.3, 0.31), 3, 4),
        ((2.95, 3.05), 29, 31),
        ((29.9, 100.0), 299, 300),
    ],
)
def test_a_range_of_time_is_taken_for_the_video(time_range, first, end):
    within = Sampling(7, "resample").within(TimeRange(*time_range))
    expected = first + frame_indices(end - first, 10.0, Sampling(7, "resample"))
    np.testing.assert_array_equal(frame_indices(300, 10.0, within), expected)
    grid = Sampling(1024, "grid", 10.0).within(TimeRange(*time_range))
    np.testing.assert_array_equal(frame_indices(300, 10.0, grid), np.arange(first, end))
    assert Sampling.from_settings(within.as_settings()) == within


def test_a_range_of_time_that_there_is_not():
    beyond = Sampling().within(TimeRange(30.0, 31.0))
    with pytest.raises(ValueError, match=r"no frame from second 30 to 31: it ends after 30.00"):
        frame_indices(300, 10.0, beyond)
    for start, end in ((-1, 1), (1, 1), (2, 1), (0, float("inf")), (float("nan"), 1)):
        with pytest.raises(ValueError, match="must have 0 <= start < end"):
            Sampling(time_range=TimeRange(start, end))
    with pytest.raises(ValueError, match="frame_rate"):
        frame_indices(9, 0.0, Sampling(5, "resample", time_range=TimeRange(0, 1)))


def test_recorded_names_are_those_of_the_settings():
    settings = {"max_frames": 5, "sampling": "resample", "frames_per_second": 2.0}
    assert Sampling(5, "resample", 2.0).as_settings() == settings
    assert SamplingSettings(**settings).frame_sampling == Sampling(5, "resample", 2.0)
    assert SamplingSettings().frame_sampling == Sampling()
    assert dataclasses.asdict(SamplingSettings()) == Sampling().as_settings()


# -------------------------------------------------------------------------- reading


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


# ------------------------------------------------------------------------ bad files


def missing(path, **_):
    return path


def folder(path, **_):
    path.mkdir()
    return path


def empty(path, **_):
    path.touch()
    return path


def text(path, **_):
    path.write_text("this is not a video\n" * 500)
    return path


def sound_only(path, **_):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(
            np.zeros((1, 16000), dtype=np.float32), format="fltp", layout="mono"
        )
        frame.rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def header_at_end_lost(path, *, write_video, cut):
    return cut(write_video(path, noise=20), 0.9)


def header_first_frames_lost(share):
    def make(path, *, write_video, cut):
        return cut(write_video(path, noise=20, faststart=True), share)

    make.__name__ = f"header_first_{share}_kept"
    return make


def overwritten_in_the_middle(path, *, write_video, **_):
    content = bytearray(write_video(path, noise=20, faststart=True).read_bytes())
    third = len(content) // 3
    content[third : 2 * third] = bytes(third)
    path.write_bytes(content)
    return path


def shortened_matroska(path, *, write_video, cut):
    return cut(write_video(path.with_suffix(".mkv"), noise=20), 0.5)


def shortened_webm(path, *, write_video, cut):
    return cut(write_video(path.with_suffix(".webm"), codec="libvpx", noise=20), 0.5)


def shortened_avi(path, *, write_video, cut):
    made = write_video(path.with_suffix(".avi"), codec="mpeg4", bf="0", noise=20)
    return cut(made, 0.5)


def copied(source, path, keep=lambda index: True, later=0, degrees=0):
    """Copy packets without decoding, as cutting tools do."""
    with av.open(str(source)) as old, av.open(str(path), "w") as new:
        stream = old.streams.video[0]
        copy = new.add_stream_from_template(stream)
        if degrees:
            if not hasattr(copy, "set_display_rotation"):
                pytest.skip("this PyAV writes no rotation")
            copy.set_display_rotation(degrees)
        packets = [packet for packet in old.demux(stream) if packet.size]
        step = packets[0].duration
        for index, packet in enumerate(packets):
            if keep(index):
                packet.stream = copy
                packet.pts += later * step
                packet.dts += later * step
                new.mux(packet)
    return path


def without_first_key_frame(path, *, write_video, **_):
    source = write_video(path.with_name("source.mp4"))
    return copied(source, path, keep=lambda index: index >= 5)


def without_any_key_frame(path, *, write_video, **_):
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


def test_what_decord_would_mix_up_is_read_with_pyav(tmp_path, write_video, frame_numbers):
    # B-frames in an AVI file have no time stamps.
    path = write_video(tmp_path / "video.avi", bf="2")
    with pytest.raises(VideoError, match="without valid time stamps"):
        decord_reader.read(path, Sampling())
    assert frame_numbers(read_frames(path)) == list(range(0, 64, 8))
    assert check_video(path, Sampling()).reason is None


def test_a_clip_cut_between_key_frames_shows_what_is_shown_of_it(
    tmp_path, write_video, frame_numbers
):
    path = copied(write_video(tmp_path / "source.mp4"), tmp_path / "cut.mp4", later=-20)
    assert frame_numbers(read_frames(path)) == [20, 28, 36, 44, 52, 60]


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


def test_the_error_survives_pickling_and_being_rebuilt_from_its_message(tmp_path):
    with pytest.raises(VideoError) as caught:
        read_frames(tmp_path / "gone.mp4")
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (str(copy), copy.path) == (str(caught.value), tmp_path / "gone.mp4")
    assert str(VideoError("a message")) == "a message"


def test_pyav_alone_is_enough(tmp_path, write_video, monkeypatch):
    path = write_video(tmp_path / "video.mp4", 20)
    frames = read_frames(path)
    monkeypatch.setitem(sys.modules, "decord", None)
    np.testing.assert_array_equal(read_frames(path), frames)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ImportError, match=r'av cannot .* pip install "garevla\[video\]"'):
        read_frames(path)


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
