from __future__ import annotations

import pytest

from benchmarks.growth import exponent, predict


def test_exponent_of_a_power_law():
    sizes = [10, 20, 50, 90]
    assert exponent(sizes, [3 * x**1.7 for x in sizes]) == pytest.approx(1.7)


@pytest.mark.parametrize("sizes", [[], [8], [8, 8]])
def test_no_exponent_without_two_sizes(sizes):
    assert exponent(sizes, [1.0] * len(sizes)) is None


def test_prediction_follows_the_last_two_sizes_within_bounds():
    assert predict([1, 10, 100], [9.0, 1.0, 100.0], 1000, most=3) == pytest.approx(1e4)
    assert predict([10, 100], [1.0, 1e4], 1000, most=3) == pytest.approx(1e7)
    assert predict([10, 100], [5.0, 5.0], 1000, most=3) == pytest.approx(50)


def test_prediction_from_one_size_takes_the_usual_exponent():
    assert predict([10], [1.0], 100, most=3) == pytest.approx(100)
    assert predict([], [], 100, most=3) is None
