"""Scores changed by other queries: dual softmax and QB-Norm, from statistics of streamed tiles.

Both are transductive: the score of a pair depends on queries other than its own, those of the test
set (dual softmax) or of a bank (QB-Norm). Figures made with them do not compare with plain ones.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from garevla.evaluation.tiles import TileScorer
from garevla.head.texts import Texts

# Derived scores carry rounding errors of float64 sums, up to about 1e-12. Neighbouring float32
# cosine similarities lie at least 1e-8 apart.
_ROUNDING = 1e-10
# exp of less is no longer a normal float64.
_LEAST_LOGARITHM = math.log(torch.finfo(torch.float64).tiny)


class DerivedScores(Protocol):
    """What the pairs of a tile are ranked by, in place of their scores (a, b)."""

    def text_to_video(self, scores: Tensor, texts: slice, videos: slice) -> Tensor:
        """What a text's videos are ranked by, (a, b)."""

    def video_to_text(self, scores: Tensor, texts: slice, videos: slice) -> Tensor:
        """What a video's texts are ranked by, (a, b)."""

    def rounding(self, reference: Tensor) -> Tensor | float:
        """How far from a reference a score is still the same but for rounding."""


class PostProcessing(Protocol):
    """How scores are derived from those of a whole test set."""

    ranks_texts: bool
    """Whether there are scores of video-to-text retrieval."""

    def derive(self, scorer: TileScorer) -> DerivedScores:
        """Gather the statistics, in passes over all tiles."""

    def __str__(self) -> str:
        """What is done, in the protocol's words."""


@dataclass(frozen=True)
class DualSoftmax:
    """The score times its softmax over the queries.

    With similarity S of A texts and B videos and scale λ, texts rank videos by
    ``S_ij · exp(λ·S_ij) / Σ_i' exp(λ·S_i'j)`` and videos rank texts by
    ``S_ij · exp(λ·S_ij) / Σ_j' exp(λ·S_ij')``: the prior of Cheng et al., "Improving Video-Text
    Retrieval by Multi-Stream Corpus Alignment and Dual Softmax Loss" (arXiv 2109.04290), used in
    evaluation. Their factor, the number of queries, changes no rank. Public evaluation code takes
    the softmax of cosine similarities times CLIP's logit scale, about 100.
    """

    scale: float = 100.0

    ranks_texts = True

    def __post_init__(self) -> None:
        _check_positive("scale", self.scale)

    def __str__(self) -> str:
        return f"dual softmax over the test queries, scale {self.scale:g} (transductive)"

    def derive(self, scorer: TileScorer) -> DerivedScores:
        """Sum over all texts and over all videos, in one pass.

        Raises:
            ValueError: infinite scores, or such differences that the prior is 0 in float64.
        """
        of_texts = _logarithm_of_zero(scorer.num_texts, scorer)
        of_videos = _logarithm_of_zero(scorer.num_videos, scorer)
        least = math.inf
        for texts, videos, scores in scorer.all_tiles():
            scaled = self.scale * _finite(scores)
            of_texts[texts] = torch.logaddexp(of_texts[texts], scaled.logsumexp(dim=1))
            of_videos[videos] = torch.logaddexp(of_videos[videos], scaled.logsumexp(dim=0))
            least = min(least, float(scaled.min()))
        if least - max(float(of_texts.max()), float(of_videos.max())) < _LEAST_LOGARITHM:
            raise ValueError(
                f"dual softmax of scale {self.scale:g} is too sharp: scores differ so much that "
                "their softmax is 0 in float64"
            )
        return _DualSoftmaxScores(self.scale, of_texts, of_videos)


@dataclass(frozen=True)
class _DualSoftmaxScores:
    scale: float
    of_texts: Tensor
    """(A,) log Σ_j exp(λ·S_ij)"""
    of_videos: Tensor
    """(B,) log Σ_i exp(λ·S_ij)"""

    def text_to_video(self, scores: Tensor, texts: slice, videos: slice) -> Tensor:
        scores = scores.double()
        return scores * (self.scale * scores - self.of_videos[videos]).exp()

    def video_to_text(self, scores: Tensor, texts: slice, videos: slice) -> Tensor:
        scores = scores.double()
        return scores * (self.scale * scores - self.of_texts[texts, None]).exp()

    def rounding(self, reference: Tensor) -> Tensor:
        return _ROUNDING * reference.abs()


@dataclass(frozen=True)
class QueryBankNorm:
    """QB-Norm with the dynamic inverted softmax, for text-to-video retrieval.

    Bogolin et al., "Cross Modal Retrieval with Querybank Normalisation" (CVPR 2022, arXiv
    2112.12777): a video's score is divided by what the bank's queries give it,
    ``exp(β·S_ij) / Σ_b exp(β·S_bj)``, for those texts whose best video is the best one of some
    query of the bank (their activation set with k = 1); other texts keep their scores. β is 20
    as in the authors' code. Of several best videos of equal score all count, so that nothing
    depends on the order of the videos.

    Attributes:
        bank: (M, D) text features of training captions, or with those of their words.
        beta: β.
    """

    bank: Tensor | Texts
    beta: float = 20.0

    ranks_texts = False

    def __post_init__(self) -> None:
        _check_positive("beta", self.beta)

    def __str__(self) -> str:
        return (
            f"QB-Norm, dynamic inverted softmax, beta {self.beta:g}, "
            f"bank of {len(self.bank)} captions (transductive)"
        )

    def derive(self, scorer: TileScorer) -> DerivedScores:
        """Score the bank against all videos, then the texts for their best videos.

        Raises:
            ValueError: infinite scores, or a bank of the wrong shape.
        """
        of_videos = _logarithm_of_zero(scorer.num_videos, scorer)
        is_best = torch.zeros(scorer.num_videos, dtype=torch.bool, device=scorer.device)
        for _, scores in _rows(scorer.for_texts(self.bank)):
            sums = (self.beta * _finite(scores)).logsumexp(dim=0)
            of_videos = torch.logaddexp(of_videos, sums)
            is_best |= _best_of_rows(scores).any(dim=0)
        normalized = torch.zeros(scorer.num_texts, dtype=torch.bool, device=scorer.device)
        for texts, scores in _rows(scorer):
            _finite(scores)
            normalized[texts] = (_best_of_rows(scores) & is_best).any(dim=1)
        return _QueryBankScores(self.beta, of_videos, normalized)


@dataclass(frozen=True)
class _QueryBankScores:
    """Logarithms, which have the order of the scores and do not underflow."""

    beta: float
    of_videos: Tensor
    """(B,) log Σ_b exp(β·S_bj)"""
    normalized: Tensor
    """(A,) bool"""

    def text_to_video(self, scores: Tensor, texts: slice, videos: slice) -> Tensor:
        scaled = self.beta * scores.double()
        normalized = self.normalized[texts, None]
        return torch.where(normalized, scaled - self.of_videos[videos], scaled)

    def video_to_text(self, scores: Tensor, texts: slice, videos: slice) -> Tensor:
        raise NotImplementedError("a bank of captions ranks no texts")

    def rounding(self, reference: Tensor) -> float:
        return _ROUNDING


def _rows(scorer: TileScorer) -> Iterator[tuple[slice, Tensor]]:
    """Scores (a, B) of some texts with all videos."""
    for texts in scorer.text_slices:
        columns = [
            scores for videos in scorer.video_slices for _, scores in scorer.tiles([texts], videos)
        ]
        yield texts, torch.cat(columns, dim=1)


def _best_of_rows(scores: Tensor) -> Tensor:
    return scores == scores.amax(dim=1, keepdim=True)


def _logarithm_of_zero(size: int, scorer: TileScorer) -> Tensor:
    return torch.full((size,), -torch.inf, dtype=torch.float64, device=scorer.device)


def _finite(scores: Tensor) -> Tensor:
    """Scores in float64.

    Raises:
        ValueError: one is infinite.
    """
    if not bool(scores.isfinite().all()):
        raise ValueError("post-processing needs finite scores; some are infinite")
    return scores.double()


def _check_positive(name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be positive and finite, got {value}")
