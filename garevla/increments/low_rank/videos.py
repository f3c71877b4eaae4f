"""Low-rank increments, Δ_ij = Σ_k c_ijk E_jk, as the head sees them."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from garevla.increments.base import (
    EncodedVideos,
    GarePairs,
    IncrementNetwork,
    Increments,
    IncrementSample,
    Moments,
    PairStatistics,
)
from garevla.increments.low_rank.factors import (
    IncrementFactors,
    VideoFactors,
    text_factors,
    video_factors,
)
from garevla.ops.backends import resolve
from garevla.ops.eager.statistics import coefficient_moments


class LowRankNetwork(IncrementNetwork):
    """A ψ whose increments are combinations of K vectors of their video (docs/derivation.md).

    A new one computes :class:`IncrementFactors` of the frames; nothing else.
    """

    @abstractmethod
    def forward(self, frame_features: Tensor) -> IncrementFactors:
        """Factors of every increment of these videos.

        Args:
            frame_features: (B, F, D), float32 or float64, finite everywhere; what padded frames
                hold does not matter, since the pair operation gives them weight 0.

        Returns:
            The factors, in the dtype of ``frame_features``.
        """

    def encode_videos(self, frame_features: Tensor, frame_mask: Tensor) -> LowRankVideos:
        return LowRankVideos(video_factors(frame_features, frame_mask, self(frame_features)))


@dataclass(frozen=True)
class LowRankVideos(EncodedVideos):
    """Factors of B videos."""

    factors: VideoFactors

    def similarity(self, text_features: Tensor, pool_temperature: float, backend: str) -> Tensor:
        arguments = text_factors(text_features), self.factors, pool_temperature
        return resolve("pair_similarity", backend, text_features.device, *arguments)(*arguments).T

    def pairs(self, text_features: Tensor, pool_temperature: float, backend: str) -> GarePairs:
        arguments = text_factors(text_features), self.factors, pool_temperature
        terms = resolve("pair_terms", backend, text_features.device, *arguments)(*arguments)
        increments = LowRankIncrements(
            terms.coefficients, self.factors.basis, terms.increment_norm.T
        )
        return GarePairs(terms.similarity.T, increments)

    def statistics(
        self,
        text_features: Tensor,
        pool_temperature: float,
        logit_scale: Tensor,
        targets: Tensor,
        samples: Tensor | None,
        backend: str,
    ) -> PairStatistics:
        pairs = text_factors(text_features), self.factors, pool_temperature
        arguments = *pairs, logit_scale, targets, samples
        operation = resolve("pair_statistics", backend, text_features.device, *arguments)
        found, basis, sample = operation(*arguments), self.factors.basis, None
        if samples is not None:
            sample = LowRankSample(found.sampled_coefficients, basis, samples)
        return PairStatistics(
            row_logsumexp=found.row_logsumexp,
            column_logsumexp=found.column_logsumexp,
            target_similarity=found.target_similarity,
            norm_variance=found.norm_variance,
            moments=_moments(found.coefficient_mean, found.coefficient_covariance, basis),
            sample=sample,
        )


@dataclass(frozen=True)
class LowRankIncrements(Increments):
    """O(A·B·K + B·K·D) numbers instead of A·B·D."""

    coefficients: Tensor  # (B, K, A) c_ijk
    basis: Tensor  # (B, K, D) the vectors E_jk
    norm: Tensor  # (A, B) ‖Δ_ij‖

    def moments(self) -> Moments:
        return _moments(**coefficient_moments(self.coefficients), basis=self.basis)

    def directional_diversity(self, alpha: float, backend: str) -> Tensor:
        unit = self.coefficients / self.norm.T.clamp_min(1e-12).unsqueeze(1)
        arguments = unit, self.basis, alpha
        return resolve("direction", backend, unit.device, *arguments)(*arguments)

    def sample(self, videos: Tensor) -> LowRankSample:
        texts = torch.arange(len(videos), device=videos.device).unsqueeze(1)
        return LowRankSample(self.coefficients[videos, :, texts], self.basis, videos)

    def materialize(self) -> Tensor:
        return torch.einsum("bka,bkd->abd", self.coefficients, self.basis)


@dataclass(frozen=True)
class LowRankSample(IncrementSample):
    """The increments of n videos for each text."""

    coefficients: Tensor  # (A, n, K)
    basis: Tensor  # (B, K, D)
    videos: Tensor  # (A, n) int64

    def directional_diversity(self, alpha: float, backend: str) -> Tensor:
        arguments = self.coefficients, self.basis, self.videos, alpha
        operation = resolve("sampled_direction", backend, self.basis.device, *arguments)
        return operation(*arguments)


def _moments(coefficient_mean: Tensor, coefficient_covariance: Tensor, basis: Tensor) -> Moments:
    """From the mean (B, K) and covariance (B, K, K) of the coefficients over the texts."""
    return Moments(
        mean=(coefficient_mean.unsqueeze(1) @ basis).squeeze(1),
        variance=_VarianceOfCombination.apply(coefficient_covariance, basis),
    )


class _VarianceOfCombination(torch.autograd.Function):
    """E_·dᵀ Cov E_·d for each feature d: (B, K, K) symmetric, (B, K, D) → (B, D).

    Autograd would not see the symmetry and take a product more in backward.
    """

    @staticmethod
    def forward(ctx: Any, covariance: Tensor, basis: Tensor) -> Tensor:
        ctx.save_for_backward(covariance, basis)
        return (basis * (covariance @ basis)).sum(dim=1)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, Tensor]:
        covariance, basis = ctx.saved_tensors
        weighted = basis * grad_output.unsqueeze(1)
        return weighted @ basis.mT, 2 * covariance @ weighted
