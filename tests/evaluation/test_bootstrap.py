from __future__ import annotations

import numpy as np
import pytest

from garevla.evaluation import RetrievalMetrics, standard_errors


def test_errors_of_proportions_and_means_are_the_analytic_ones() -> None:
    ranks = np.random.default_rng(0).geometric(0.2, 400).astype(float)
    found = standard_errors(ranks, np.arange(400), num_resamples=4000)
    for k in (1, 5, 10):
        share = np.mean(ranks <= k)
        expected = 100 * np.sqrt(share * (1 - share) / 400)
        # The standard deviation of 4000 samples is itself known to 1 in sqrt(8000): 4 of these.
        assert getattr(found, f"recall_at_{k}") == pytest.approx(expected, rel=0.045)
    assert found.mean_rank == pytest.approx(ranks.std() / 20, rel=0.045)


def test_captions_of_one_video_are_drawn_together() -> None:
    """Ten captions with the same rank say no more than one."""
    ranks = np.random.default_rng(1).integers(1, 9, 50).astype(float)
    once = standard_errors(ranks, np.arange(50), seed=3)
    ten_times = standard_errors(np.repeat(ranks, 10), np.repeat(np.arange(50), 10), seed=3)
    assert ten_times.as_dict() == pytest.approx(once.as_dict(), rel=1e-12)
    alone = standard_errors(np.repeat(ranks, 10), np.arange(500), seed=3)
    assert alone.recall_at_1 < 0.5 * once.recall_at_1


def test_every_figure_against_samples_drawn_one_by_one() -> None:
    generator = np.random.default_rng(2)
    ranks = generator.integers(1, 20, 60) / 2 + 0.5
    videos = generator.integers(0, 17, 60)
    names = np.unique(videos)
    draws = np.random.default_rng(5)
    figures = []
    for _ in range(50):
        drawn = draws.integers(len(names), size=len(names))
        sample = np.concatenate([ranks[videos == names[each]] for each in drawn])
        figures.append(list(RetrievalMetrics.from_ranks(sample).as_dict().values())[:5])
    expected = np.std(figures, axis=0, ddof=1)
    found = standard_errors(ranks, videos, num_resamples=50, seed=5)
    assert list(found.as_dict().values()) == pytest.approx(expected.tolist(), rel=1e-12)
    assert found == standard_errors(ranks, videos, num_resamples=50, seed=5)
    assert found != standard_errors(ranks, videos, num_resamples=50, seed=6)


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="ranks must be finite"):
        standard_errors(np.array([0.5]), np.array([0]))
    with pytest.raises(ValueError, match=r"clusters must have shape \(2,\), got \(3,\)"):
        standard_errors(np.ones(2), np.arange(3))
    with pytest.raises(ValueError, match="num_resamples must be at least 2, got 1"):
        standard_errors(np.ones(2), np.arange(2), num_resamples=1)
