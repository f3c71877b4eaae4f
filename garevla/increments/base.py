"""What the head needs of an increment network ψ, whatever it is made of.

ψ encodes the videos of a batch once. The result answers for all pairs with any texts: similarities,
and the increments Δ_ij as far as the loss wants them. The head knows the feature dimension D; how
increments are factored, stored or recomputed is the network's own affair. A network that implements
:meth:`EncodedVideos.pairs` alone works everywhere; the other methods are for those that can do
better.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from garevla.increments.products import DenseProducts, IncrementProducts
from garevla.increments.saved_once import SavedOnce


class IncrementNetwork(SavedOnce, ABC):
    """ψ: computes a pair's increment from its semantic gap (GARE, NeurIPS 2025)."""

    dim: int
    """D, of the features and increments."""

    lengths_compared: bool = False
    """Whether the first increments were compared with the features (garevla/head/lengths.py)."""

    @abstractmethod
    def encode_videos(self, frame_features: Tensor, frame_mask: Tensor) -> EncodedVideos:
        """Everything about these videos that no text changes.

        Args:
            frame_features: (B, F, D), float32 or float64; zeros where ``frame_mask`` is false, but
                for a network that :attr:`reads_padding`.
            frame_mask: (B, F) bool, at least one valid frame per video.
        """

    def encode_texts(
        self, text_features: Tensor, word_features: Tensor, word_mask: Tensor
    ) -> EncodedVideos:
        """Everything about these texts that no video changes, where videos are corrected.

        Texts and videos change places: in what is returned the texts stand where otherwise videos
        do, and mean frames (B, D) where otherwise texts do. The increment is that of the gap
        mean frame − text all the same.

        Args:
            text_features: (A, D), float32 or float64.
            word_features: (A, W, D), zeros where ``word_mask`` is false.
            word_mask: (A, W) bool, at least one word per text.

        Raises:
            ValueError: this network cannot correct videos, or not as it is set now.
        """
        raise ValueError(f"{type(self).__name__} has no increments of videos")

    def encode_compact(self, frame_features: Tensor, frame_mask: Tensor) -> EncodedVideos:
        """As :meth:`encode_videos`, in little more memory than the frames take.

        Raises:
            ValueError: this network has no such form, or not as it is set now.
        """
        raise ValueError(f"{type(self).__name__} has no compact form of its videos")

    @property
    def draws_seed(self) -> bool:
        """Whether encoding draws a seed of dropout masks, one for each pair."""
        return False

    @property
    def dtype(self) -> torch.dtype:
        """Of the parameters."""
        return next(self.parameters()).dtype

    @property
    def reads_padding(self) -> bool:
        """Whether padded frames count for ψ; else they come as zeros."""
        return False


class VideoParts(NamedTuple):
    """Encoded videos taken apart, to be cut, joined, moved and written."""

    of_videos: dict[str, Tensor]  # the first axis counts the videos
    shared: dict[str, Tensor]  # the same for all videos: weights of ψ
    constants: dict[str, Any]  # numbers, strings and tuples of them
    narrow: tuple[str, ...]  # what of_videos may hold in 16 bits, most of its numbers


class EncodedVideos(ABC):
    """B videos under ψ. Texts are (A, D) in the videos' dtype; ``backend`` is as in
    :func:`garevla.gare_similarity`."""

    @property
    def dropout_seed(self) -> Tensor | None:
        """0-d int64 on the CPU, of the pairs' dropout masks; None where no pair has one."""
        return None

    def placed(
        self, first_text: int, first_video: int, dropout_seed: Tensor | None
    ) -> EncodedVideos:
        """The same videos where others hold part of the batch: with the indices that the first text
        and the first video have in it, on which the pairs' dropout masks depend."""
        return self

    def parts(self) -> VideoParts:
        """The videos taken apart, for :class:`garevla.Videos`.

        Raises:
            ValueError: this kind cannot be kept.
        """
        raise ValueError(f"{type(self).__name__} cannot be kept")

    @classmethod
    def from_parts(cls, parts: VideoParts) -> EncodedVideos:
        """The inverse of :meth:`parts`."""
        raise ValueError(f"{cls.__name__} cannot be kept")

    @abstractmethod
    def pairs(self, text_features: Tensor, pool_temperature: float, backend: str) -> GarePairs:
        """Similarities and increments of all pairs."""

    def similarity(self, text_features: Tensor, pool_temperature: float, backend: str) -> Tensor:
        """Similarities (A, B) of all pairs, when nothing else is wanted."""
        return self.pairs(text_features, pool_temperature, backend).similarity

    def statistics(
        self,
        text_features: Tensor,
        pool_temperature: float,
        logit_scale: Tensor,
        targets: Tensor,
        diversity: Diversity | None,
        backend: str,
        *,
        with_similarity: bool = False,
    ) -> PairStatistics:
        """What the loss needs of all pairs.

        Args:
            text_features: (A, D).
            pool_temperature: τ_p of the pooling.
            logit_scale: 0-d.
            targets: (A,) int64, the video of each text.
            diversity: the directional diversity that is wanted.
            backend: a backend's name.
            with_similarity: whether the similarities are wanted, too.
        """
        pairs = self.pairs(text_features, pool_temperature, backend)
        return pairs.statistics(logit_scale, targets, diversity, backend)


class Moments(NamedTuple):
    """Of the increments of each video, over the texts."""

    mean: Tensor  # (B, D)
    variance: Tensor  # (B, D) unbiased


class Diversity(NamedTuple):
    """Which directional diversity is wanted."""

    alpha: float
    samples: Tensor | None  # (A, n) int64, videos to estimate it from; None: exactly


class Increments(ABC):
    """All increments Δ_ij of A texts and B videos; made by :func:`garevla.gare_pairs`."""

    norm: Tensor
    """(A, B) ‖Δ_ij‖"""

    @abstractmethod
    def moments(self) -> Moments:
        """Mean and variance over the texts."""

    @abstractmethod
    def directional_diversity(self, diversity: Diversity, backend: str) -> Tensor:
        """mean_i log(mean_{j,k} exp(−α(1 − cos(Δ_ij, Δ_ik))) + 1e-8), 0-d; from samples, an
        estimate whose inner mean is unbiased."""

    @abstractmethod
    def materialize(self) -> Tensor:
        """(A, B, D) increments; A·B·D numbers."""

    def products(self) -> IncrementProducts:
        """Their dot products and sums; A·B·D numbers, unless a network can do with less."""
        return DenseProducts(self.materialize())


class GarePairs(NamedTuple):
    """Similarities and increments of all pairs of a batch."""

    similarity: Tensor  # (A, B)
    increments: Increments  # for the regularizers

    def statistics(
        self, logit_scale: Tensor, targets: Tensor, diversity: Diversity | None, backend: str
    ) -> PairStatistics:
        """As :meth:`EncodedVideos.statistics`."""
        increments = self.increments
        return PairStatistics(
            **score_statistics(self.similarity, increments.norm, logit_scale, targets),
            moments=increments.moments(),
            direction=diversity and increments.directional_diversity(diversity, backend),
            similarity=self.similarity,
        )


class PairStatistics(NamedTuple):
    """Statistics of all A × B pairs, from which every term of the loss follows."""

    row_logsumexp: Tensor  # (A) log Σ_j exp(logit_scale · s_ij)
    column_logsumexp: Tensor  # (B) log Σ_i exp(logit_scale · s_ij)
    target_similarity: Tensor  # (A) similarity of each text with its video
    norm_mean: Tensor  # (A) mean of ‖Δ_ij‖ over the videos; a gradient goes with the variance's
    norm_variance: Tensor  # (A) unbiased variance of ‖Δ_ij‖ over the videos
    moments: Moments  # of the increments over the texts
    direction: Tensor | None  # 0-d directional diversity, where it is wanted
    similarity: Tensor | None = None  # (A, B), where it is wanted or at hand
    weighted_similarity: Tensor | None = None  # 0-d, of the whole batch's weights of pairs


def score_statistics(
    similarity: Tensor, increment_norm: Tensor, logit_scale: Tensor, targets: Tensor
) -> dict[str, Tensor]:
    """The fields of :class:`PairStatistics` that need no more than two numbers a pair.

    Args:
        similarity: (A, B).
        increment_norm: (A, B) ‖Δ_ij‖.
        logit_scale: 0-d.
        targets: (A,) int64.
    """
    logits = similarity * logit_scale
    # One video has no variance: 0.
    correction = min(1, similarity.shape[1] - 1)
    return {
        "row_logsumexp": logits.logsumexp(dim=1),
        "column_logsumexp": logits.logsumexp(dim=0),
        "target_similarity": similarity.gather(1, targets.unsqueeze(1)).squeeze(1),
        "norm_mean": increment_norm.mean(dim=1),
        "norm_variance": increment_norm.var(dim=1, correction=correction),
    }
