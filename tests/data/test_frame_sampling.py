"""Which frames of a video are sampled."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from garevla.data import Sampling, frame_indices
from garevla.data.frame_sampling import SamplingSettings, TimeRange


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
