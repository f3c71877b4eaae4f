"""Streamed ranks under every protocol, against loops over the whole matrix in plain numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from garevla.evaluation import (
    DualSoftmax,
    QueryBankNorm,
    RetrievalMetrics,
    rank_of_sentences,
    streaming_counts,
)

# Rounding of the reference's own float64 sums; scores that differ do so by more.
SAME = 1e-8
TILES = [(5, 4), (1000, 1000)]
NUM_VIDEOS = 11


def lookup(text, frames, mask):
    """The score of a pair is a feature of its text: any matrix at all."""
    return text[:, frames[:, 0, 0].long()]


def videos_of(num_videos):
    return torch.arange(num_videos)[:, None, None].double()


def brute_force_ranks(matrix, right, candidate_sets):
    """Rank of each row's best right candidate among the wrong ones.

    ``right[i]``: candidates (numbers of sets) that are right for row i; ``candidate_sets``: columns
    of each candidate, which is scored by the best of them.
    """
    ranks = []
    for row, answers in zip(matrix, right, strict=True):
        scores = [max(row[column] for column in columns) for columns in candidate_sets]
        best = max(scores[answer] for answer in answers)
        rank = 1.0
        for candidate, score in enumerate(scores):
            if candidate not in answers:
                same = abs(score - best) <= SAME * abs(best)
                rank += 0.5 if same else float(score > best)
        ranks.append(rank)
    return np.array(ranks)


def brute_force(to_video, to_text, targets, groups, video_to_text):
    """Ranks in both directions of two matrices, texts by videos."""
    num_videos = to_video.shape[1]
    right_videos = [[v for v in range(num_videos) if groups[v] == groups[t]] for t in targets]
    of_texts = brute_force_ranks(to_video, right_videos, [[v] for v in range(num_videos)])
    captioned = sorted(set(targets))
    if video_to_text == "caption_sets":
        candidates = [[i for i, t in enumerate(targets) if t == v] for v in captioned]
        videos = captioned
    else:
        candidates = [[i] for i in range(len(targets))]
        videos = list(targets)
    right = [[c for c, v in enumerate(videos) if groups[v] == groups[q]] for q in captioned]
    return of_texts, brute_force_ranks(to_text.T[captioned], right, candidates)


def softmax(scores, axis):
    exponentials = np.exp(scores - scores.max(axis=axis, keepdims=True))
    return exponentials / exponentials.sum(axis=axis, keepdims=True)


def dynamic_inverted_softmax(matrix, bank, beta):
    result = matrix.copy()
    best_of_bank = {v for row in bank for v in range(len(row)) if row[v] == row.max()}
    for i, row in enumerate(matrix):
        if any(row[v] == row.max() for v in best_of_bank):
            result[i] = np.exp(beta * row) / np.exp(beta * bank).sum(axis=0)
    return result


def matrix_of(kind, num_texts, num_videos, seed=0):
    generator = np.random.default_rng(seed)
    if kind == "random":
        return generator.uniform(-1, 1, (num_texts, num_videos))
    if kind == "tied":
        return generator.integers(-2, 3, (num_texts, num_videos)) / 4
    if kind == "copies":
        # The same scores in another order of the texts: the same sums but for rounding.
        scores = generator.uniform(0, 1, num_texts)
        columns = [generator.permutation(scores) for _ in range(num_videos - 2)]
        matrix = np.stack([*columns, columns[0], columns[0]], axis=1)
        matrix[:2] = scores[0]
        return matrix
    return np.full((num_texts, num_videos), 0.25)


def targets_of(captions, seed=1):
    generator = np.random.default_rng(seed)
    if captions == "one":
        return generator.permutation(NUM_VIDEOS)
    # Some videos have several captions, some have none.
    return generator.integers(0, NUM_VIDEOS - 2, 26)


GROUPS = {
    "alone": np.arange(NUM_VIDEOS),
    "near-duplicates": np.array([0, 1, 2, 0, 4, 5, 2, 7, 8, 2, 10]),
}


@pytest.mark.parametrize("kind", ["random", "tied", "copies", "equal"])
@pytest.mark.parametrize("captions", ["one", "several"])
@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize("video_to_text", ["caption_sets", "sentences"])
def test_ranks_of_every_protocol(kind, captions, groups, video_to_text):
    targets, groups = targets_of(captions), GROUPS[groups]
    matrix = matrix_of(kind, len(targets), NUM_VIDEOS)
    bank = matrix_of("random" if kind == "copies" else kind, 5, NUM_VIDEOS, seed=2)
    dual = 5.0
    normalized = dynamic_inverted_softmax(matrix, bank, 20.0)
    cases = (
        (None, matrix, matrix),
        (
            DualSoftmax(dual),
            matrix * softmax(dual * matrix, 0),
            matrix * softmax(dual * matrix, 1),
        ),
        (QueryBankNorm(torch.from_numpy(bank)), normalized, normalized),
    )
    for post_processing, to_video, to_text in cases:
        expected = brute_force(to_video, to_text, targets, groups, video_to_text)
        for text_tile, video_tile in TILES:
            found = streaming_counts(
                torch.from_numpy(matrix),
                videos_of(NUM_VIDEOS),
                lookup,
                targets,
                video_to_text=video_to_text,
                groups=groups,
                post_processing=post_processing,
                text_tile=text_tile,
                video_tile=video_tile,
            )
            assert np.array_equal(found[0].ranks(), expected[0]), post_processing
            if isinstance(post_processing, QueryBankNorm):
                assert found[1] is None
            else:
                assert np.array_equal(found[1].ranks(), expected[1]), post_processing


def test_the_protocols_differ_where_they_should():
    """Without this the test above could compare a thing with itself."""
    targets = targets_of("several")
    matrix = torch.from_numpy(matrix_of("random", len(targets), NUM_VIDEOS))
    bank = torch.from_numpy(matrix_of("random", 5, NUM_VIDEOS, seed=2))

    def ranks(**protocol):
        found = streaming_counts(matrix, videos_of(NUM_VIDEOS), lookup, targets, **protocol)
        return [None if counts is None else counts.ranks() for counts in found]

    plain = ranks()
    assert (ranks(video_to_text="sentences")[1] >= plain[1]).all()
    assert (ranks(video_to_text="sentences")[1] > plain[1]).any()
    assert np.array_equal(ranks(video_to_text="sentences")[0], plain[0])
    assert (ranks(groups=GROUPS["near-duplicates"])[0] <= plain[0]).all()
    assert (ranks(groups=GROUPS["near-duplicates"])[0] < plain[0]).any()
    for post_processing in (DualSoftmax(5.0), QueryBankNorm(bank)):
        assert not np.array_equal(ranks(post_processing=post_processing)[0], plain[0])


@pytest.mark.parametrize("ties", ["average", "compat"])
@pytest.mark.parametrize("kind", ["random", "tied", "equal"])
def test_figures_do_not_depend_on_the_order_of_texts_or_videos(ties, kind):
    matrix = matrix_of(kind, NUM_VIDEOS, NUM_VIDEOS)
    bank = matrix_of(kind, 7, NUM_VIDEOS, seed=3)
    generator = np.random.default_rng(4)
    texts, videos = generator.permutation(NUM_VIDEOS), generator.permutation(NUM_VIDEOS)

    def figures(matrix, bank, targets):
        found = []
        for post_processing in (DualSoftmax(7.0), QueryBankNorm(torch.from_numpy(bank))):
            for counts in streaming_counts(
                torch.from_numpy(matrix),
                videos_of(NUM_VIDEOS),
                lookup,
                targets,
                post_processing=post_processing,
                text_tile=4,
                video_tile=3,
            ):
                if counts is not None:
                    found.append(RetrievalMetrics.from_ranks(counts.ranks(ties)))
        return found

    expected = figures(matrix, bank, np.arange(NUM_VIDEOS))
    permuted = figures(matrix[texts][:, videos], bank[:, videos], np.argsort(videos)[texts])
    assert permuted == expected
    assert len(expected) == 3


@pytest.mark.parametrize("kind", ["random", "tied", "equal"])
@pytest.mark.parametrize("captions", ["one", "several"])
def test_sentences_of_a_whole_matrix(kind, captions):
    targets = targets_of(captions)
    matrix = matrix_of(kind, len(targets), NUM_VIDEOS)
    _, expected = brute_force(matrix, matrix, targets, GROUPS["alone"], "sentences")
    assert np.array_equal(rank_of_sentences(matrix, targets), expected)


def test_a_hub_loses_its_place():
    """Known by hand: video 0 is everyone's best until others' liking of it is counted."""
    matrix = np.array([[0.9, 0.1, 0.1], [0.8, 0.7, 0.1], [0.8, 0.1, 0.7]])

    def ranks(post_processing):
        counts, _ = streaming_counts(
            torch.from_numpy(matrix),
            videos_of(3),
            lookup,
            [0, 1, 2],
            post_processing=post_processing,
        )
        return counts.ranks().tolist()

    assert ranks(None) == [1, 2, 2]
    assert ranks(DualSoftmax(20.0)) == [1, 1, 1]
    # A bank that likes video 0 as well normalizes all texts; one that never does, none.
    assert ranks(QueryBankNorm(torch.tensor([[0.8, 0.2, 0.2]]).double())) == [1, 1, 1]
    assert ranks(QueryBankNorm(torch.tensor([[0.1, 0.9, 0.2]]).double())) == [1, 2, 2]


def test_scores_are_never_more_than_a_tile_of_rows():
    scored = []

    def counting(text, frames, mask):
        scored.append((len(text), len(frames)))
        return lookup(text, frames, mask)

    targets = targets_of("several")
    matrix = torch.from_numpy(matrix_of("random", len(targets), NUM_VIDEOS))
    for post_processing in (DualSoftmax(), QueryBankNorm(matrix[:9])):
        scored.clear()
        streaming_counts(
            matrix,
            videos_of(NUM_VIDEOS),
            counting,
            targets,
            post_processing=post_processing,
            text_tile=4,
            video_tile=3,
        )
        bank = 9 if isinstance(post_processing, QueryBankNorm) else 0
        pairs = sum(a * b for a, b in scored)
        assert pairs == (2 * len(targets) + bank) * NUM_VIDEOS
        assert max(a for a, _ in scored) <= 4
        assert max(b for _, b in scored) <= 3


def test_bad_arguments_are_errors():
    arguments = (torch.eye(3).double(), videos_of(3), lookup, [0, 1, 2])
    for bad in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="scale must be positive and finite"):
            DualSoftmax(bad)
        with pytest.raises(ValueError, match="beta must be positive and finite"):
            QueryBankNorm(torch.eye(3), bad)
    with pytest.raises(ValueError, match=r"video_to_text must be one of .* got 'both'"):
        streaming_counts(*arguments, video_to_text="both")
    with pytest.raises(ValueError, match=r"groups must have shape \(B,\) = \(3,\), got \(2,\)"):
        streaming_counts(*arguments, groups=np.array([0, 1]))
    with pytest.raises(ValueError, match="scale 1000 is too sharp"):
        streaming_counts(*arguments, post_processing=DualSoftmax(1000.0))
    infinite = torch.eye(3).double()
    infinite[0, 2] = -torch.inf
    for post_processing in (DualSoftmax(), QueryBankNorm(torch.eye(3).double())):
        with pytest.raises(ValueError, match="post-processing needs finite scores"):
            streaming_counts(infinite, *arguments[1:], post_processing=post_processing)
    with pytest.raises(ValueError, match="text_features must have shape"):
        streaming_counts(*arguments, post_processing=QueryBankNorm(torch.empty(0, 3)))
