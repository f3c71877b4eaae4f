from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from garevla.data.frame_sampling import Sampling, frame_indices
from garevla.data.pyav_reader import Packets
from garevla.data.video_errors import VideoError
from garevla.search.cutting import Cutting, frame_times, sampled_frames


@pytest.mark.parametrize(
    ("seconds", "ranges"),
    [
        (3.0, [(0, 3)]),
        (10.0, [(0, 10)]),
        (10.5, [(0, 10), (8, 10.5)]),
        (18.0, [(0, 10), (8, 18)]),
        (26.5, [(0, 10), (8, 18), (16, 26), (24, 26.5)]),
    ],
)
def test_fixed_segments_cover_a_video(seconds, ranges):
    assert Cutting().ranges(Path("a"), seconds) == ranges


def test_whole_videos():
    assert Cutting("whole").ranges(Path("a"), 99.5) == [(0, 99.5)]


@pytest.mark.parametrize(
    ("values", "name"),
    [
        (("scenes",), "segments"),
        (("fixed", 0.0), "segment_seconds"),
        (("fixed", float("inf")), "segment_seconds"),
        (("fixed", 10.0, 9.5), "overlap_seconds"),
        (("fixed", 10.0, -1.0), "overlap_seconds"),
    ],
)
def test_values_that_make_no_sense(values, name):
    with pytest.raises(ValueError, match=name):
        Cutting(*values)


def packets(times: list[float], rate: float | None = 8) -> Packets:
    made = Packets("mov", "h264", None if rate is None else Fraction(rate), None, 0, 0.0)
    made.number, made.times = len(times), times
    return made


def test_times_are_in_the_order_of_showing_and_begin_with_0():
    times, seconds = frame_times(packets([2.0, 2.375, 2.125, 2.25]), 4)
    np.testing.assert_allclose(times, [0, 0.125, 0.25, 0.375])
    assert seconds == 0.5


def test_the_rate_stands_in_for_unknown_times():
    times, seconds = frame_times(packets([0.0, 1.0]), 4)
    np.testing.assert_allclose(times, [0, 0.125, 0.25, 0.375])
    assert seconds == 0.5


def test_a_whole_video_has_the_frames_of_training():
    times, seconds = frame_times(packets((np.arange(64) / 8).tolist()), 64)
    for sampling in (Sampling(5), Sampling(12, "resample"), Sampling(99, frames_per_second=99)):
        (found,) = sampled_frames(times, [(0, seconds)], 8.0, sampling)
        np.testing.assert_array_equal(found, frame_indices(64, 8.0, sampling))


def test_frames_lie_in_their_segments():
    times, seconds = frame_times(packets((np.arange(80) / 8).tolist()), 80)
    ranges = Cutting("fixed", 3.0, 1.0).ranges(Path("a"), seconds)
    for (begin, end), frames in zip(
        ranges, sampled_frames(times, ranges, 8.0, Sampling(6, frames_per_second=2)), strict=True
    ):
        assert begin == times[frames[0]]
        assert times[frames[-1]] < end
        assert len(frames) == min(6, np.ceil((end - begin) * 2))


def test_a_slide_show_shows_what_is_on():
    times = np.array([0.0, 10.0, 20.0])
    chosen = sampled_frames(times, [(0, 4), (4, 8), (8, 12), (25, 29)], 0.1, Sampling(4))
    assert [frames.tolist() for frames in chosen] == [[0], [0], [1], [2]]


def test_shots(tmp_path):
    pytest.importorskip("scenedetect")
    av = pytest.importorskip("av")
    path = tmp_path / "shots.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 64, 64, "yuv420p"
        for number in range(150):
            image = np.full((64, 64, 3), (20, 200, 90)[number // 50], np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, "rgb24")))
        container.mux(stream.encode())
    assert Cutting("shots", 9.0).ranges(path, 6.0) == [(0, 2), (2, 4), (4, 6)]
    assert Cutting("shots", 1.5, 0.0).ranges(path, 6.0)[:3] == [(0, 1.5), (1.5, 2), (2, 3.5)]
    path.write_bytes(b"no video")
    with pytest.raises(VideoError, match="no shots can be found"):
        Cutting("shots").ranges(path, 6.0)
