from __future__ import annotations

import numpy as np
import pytest
import torch

from garevla.evaluation import RetrievalMetrics, rank_of_caption_sets, rank_of_targets


def brute_force_ranks(similarity, targets):
    ranks = []
    for row, target in zip(similarity, targets, strict=True):
        rank = 1.0
        for candidate, value in enumerate(row):
            if value > row[target]:
                rank += 1
            elif value == row[target] and candidate != target:
                rank += 0.5
        ranks.append(rank)
    return np.array(ranks)


def brute_force_caption_set_ranks(similarity, targets):
    num_videos = similarity.shape[1]
    sets = {j: [i for i, t in enumerate(targets) if t == j] for j in range(num_videos)}
    ranks = []
    for video, captions in sets.items():
        if not captions:
            continue
        best = {j: max(similarity[i][video] for i in c) for j, c in sets.items() if c}
        rank = 1.0
        for other, value in best.items():
            if other != video:
                rank += 1.0 * (value > best[video]) + 0.5 * (value == best[video])
        ranks.append(rank)
    return np.array(ranks)


def published_figures(similarity):
    """The published recipe in its own steps: sort, subtract the diagonal, take every zero."""
    negated = -similarity
    ascending = np.sort(negated, axis=1)
    difference = ascending - np.diag(negated)[:, None]
    columns = np.nonzero(difference == 0)[1]
    count = len(columns)
    return (
        float((columns < 1).sum()) * 100 / count,
        float((columns < 5).sum()) * 100 / count,
        float((columns < 10).sum()) * 100 / count,
        float(np.median(columns) + 1),
        float(np.mean(columns) + 1),
        count,
    )


def figures(ranks):
    return tuple(RetrievalMetrics.from_ranks(ranks).as_dict().values())


def random_scores(seed, shape, *, levels=None, dtype=np.float32):
    generator = np.random.default_rng(seed)
    if levels is None:
        return generator.standard_normal(shape).astype(dtype)
    return generator.integers(0, levels, shape).astype(dtype)


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (13, 5), (5, 13), (17, 17)])
@pytest.mark.parametrize("levels", [None, 4, 1])
def test_average_ranks_match_brute_force(shape, levels):
    similarity = random_scores(0, shape, levels=levels)
    targets = np.random.default_rng(1).integers(0, shape[1], shape[0])
    expected = brute_force_ranks(similarity, targets)
    assert np.array_equal(rank_of_targets(similarity, targets), expected)
    assert np.array_equal(rank_of_targets(torch.from_numpy(similarity), targets.tolist()), expected)
    assert np.array_equal(
        rank_of_caption_sets(similarity, targets),
        brute_force_caption_set_ranks(similarity, targets),
    )


def test_known_ranks():
    similarity = torch.tensor([[0.9, 0.1, 0.5], [0.2, 0.2, 0.2], [0.8, 0.7, 0.7]])
    assert rank_of_targets(similarity, [0, 1, 2]).tolist() == [1.0, 2.0, 2.5]


def test_figures_of_known_ranks():
    figures = RetrievalMetrics.from_ranks(np.array([1.0, 1.5, 5.0, 10.0, 11.0, 1.0]))
    assert figures.recall_at_1 == pytest.approx(100 * 2 / 6)
    assert figures.recall_at_5 == pytest.approx(100 * 4 / 6)
    assert figures.recall_at_10 == pytest.approx(100 * 5 / 6)
    assert figures.median_rank == 3.25
    assert figures.mean_rank == pytest.approx(29.5 / 6)
    assert figures.num_queries == 6


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("levels", [None, 50, 3, 1])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_compat_is_bit_for_bit_the_published_recipe(seed, levels, dtype):
    similarity = random_scores(seed, (61, 61), levels=levels, dtype=dtype)
    diagonal = np.arange(61)
    assert figures(rank_of_targets(similarity, diagonal, ties="compat")) == published_figures(
        similarity
    )
    assert figures(rank_of_caption_sets(similarity, diagonal, ties="compat")) == published_figures(
        similarity.T
    )


def test_compat_equals_average_without_ties():
    similarity = random_scores(5, (40, 40))
    average, compat = (
        rank_of_targets(similarity, range(40), ties=t) for t in ("average", "compat")
    )
    assert np.array_equal(average, compat)


def test_compat_rounds_the_mean_rank_as_published():
    similarity = np.array([[0.9, 0.1, 0.2], [0.3, 0.8, 0.1], [0.7, 0.6, 0.5]])
    assert 2 / 3 + 1 != 5 / 3  # ranks 1, 1, 3: the order of operations shows
    ranks = rank_of_targets(similarity, range(3), ties="compat")
    assert figures(ranks) == published_figures(similarity)
    assert RetrievalMetrics.from_ranks(ranks).mean_rank == 2 / 3 + 1


def test_compat_counts_nearly_equal_scores_as_different():
    similarity = np.array([[1.0, np.nextafter(1.0, 2.0)], [5e-324, 0.0]])
    ranks = rank_of_targets(similarity, [0, 1], ties="compat")
    assert figures(ranks) == published_figures(similarity)
    assert ranks.tolist() == [2.0, 2.0]


def test_all_equal_scores_are_not_a_success():
    ranks = rank_of_targets(np.zeros((4, 4)), range(4))
    assert figures(ranks) == (0.0, 100.0, 100.0, 2.5, 2.5, 4)
    compat = rank_of_targets(np.zeros((4, 4)), range(4), ties="compat")
    assert figures(compat) == (25.0, 100.0, 100.0, 2.5, 2.5, 16)


def test_documented_example_of_one_tied_query():
    similarity = np.array([[0.9, 0.1, 0.2], [0.3, 0.8, 0.1], [0.5, 0.5, 0.5]])
    average = RetrievalMetrics.from_ranks(rank_of_targets(similarity, range(3)))
    compat = RetrievalMetrics.from_ranks(rank_of_targets(similarity, range(3), ties="compat"))
    assert (round(average.recall_at_1, 1), average.num_queries) == (66.7, 3)
    assert (compat.recall_at_1, compat.num_queries) == (60.0, 5)


@pytest.mark.parametrize("ties", ["average", "compat"])
def test_figures_do_not_depend_on_the_order_of_texts_or_videos(ties):
    similarity = random_scores(3, (23, 23), levels=8)
    generator = np.random.default_rng(4)
    texts, videos = generator.permutation(23), generator.permutation(23)
    permuted = similarity[texts][:, videos]
    targets = np.argsort(videos)[texts]
    for rank in (rank_of_targets, rank_of_caption_sets):
        expected = figures(rank(similarity, range(23), ties=ties))
        assert figures(rank(permuted, targets, ties=ties)) == expected


def test_each_caption_is_a_query_and_a_caption_set_is_one_candidate():
    # Video 0 has captions 0 and 1, video 1 has caption 2, video 2 has none.
    similarity = np.array([[0.9, 0.6, 0.0], [0.1, 0.7, 0.0], [0.5, 0.5, 0.2]])
    targets = [0, 0, 1]
    assert rank_of_targets(similarity, targets).tolist() == [1.0, 2.0, 1.5]
    # Both captions of video 0 beat video 1's own, yet they are one candidate: rank 2, not 3.
    assert rank_of_caption_sets(similarity, targets).tolist() == [1.0, 2.0]


def test_compat_refuses_several_captions_per_video():
    for rank in (rank_of_targets, rank_of_caption_sets):
        with pytest.raises(ValueError, match="one caption per video"):
            rank(np.eye(3), [0, 0, 2], ties="compat")


@pytest.mark.parametrize("rank", [rank_of_targets, rank_of_caption_sets])
def test_bad_input_is_an_error(rank):
    similarity = np.eye(3, 4)
    targets = [0, 1, 2]
    with_nan = similarity.copy()
    with_nan[1, 3] = np.nan
    with pytest.raises(ValueError, match=r"NaN .*\[1, 3\]"):
        rank(with_nan, targets)
    for shape in [(0, 4), (3, 0), (3,)]:
        with pytest.raises(ValueError, match="similarity must have shape"):
            rank(np.zeros(shape), targets)
    with pytest.raises(TypeError, match="floating-point"):
        rank(np.eye(3, dtype=np.int64), targets)
    with pytest.raises(ValueError, match=r"shape \(A,\) = \(3,\)"):
        rank(similarity, [0, 1])
    for wrong in (-1, 4):
        with pytest.raises(ValueError, match=f"got {wrong} for text 1"):
            rank(similarity, [0, wrong, 2])
    with pytest.raises(TypeError, match="integers"):
        rank(similarity, [0.0, 1.0, 2.0])
    with pytest.raises(ValueError, match="ties must be one of"):
        rank(similarity, targets, ties="optimistic")


def test_infinite_scores():
    similarity = np.array([[0.5, -np.inf, np.inf], [0.0, 0.1, 0.2]])
    assert rank_of_targets(similarity, [0, 1]).tolist() == [2.0, 2.0]
    with pytest.raises(ValueError, match=r"query 0 .* infinite"):
        rank_of_targets(similarity, [1, 1])


@pytest.mark.parametrize("ranks", [[], [0.5], [np.nan], [np.inf], [[1.0]]])
def test_impossible_ranks_are_an_error(ranks):
    with pytest.raises(ValueError, match="ranks must"):
        RetrievalMetrics.from_ranks(np.array(ranks))
