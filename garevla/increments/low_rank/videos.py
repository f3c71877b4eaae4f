"""Low-rank increments, Δ_ij = Σ_k c_ijk E_jk, as the head sees them."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from garevla.increments.base import (
    Diversity,
    EncodedVideos,
    GarePairs,
    IncrementNetwork,
    Increments,
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

    def encode_videos(self, frame_features: Tensor, frame_mask: Tensor) -> EncodedVideos:
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
        diversity: Diversity | None,
        backend: str,
        *,
        with_similarity: bool = False,
    ) -> PairStatistics:
        samples = diversity and diversity.samples
        if with_similarity or (diversity is not None and samples is None):
            # The exact diversity needs the coefficients of all pairs.
            pairs = self.pairs(text_features, pool_temperature, backend)
            return pairs.statistics(logit_scale, targets, diversity, backend)
        factors = text_factors(text_features), self.factors, pool_temperature
        arguments = *factors, logit_scale, targets, samples
        operation = resolve("pair_statistics", backend, text_features.device, *arguments)
        found, basis, direction = operation(*arguments), self.factors.basis, None
        if diversity is not None:
            direction = _sampled_diversity(found.sampled_coefficients, basis, diversity, backend)
        return PairStatistics(
            row_logsumexp=found.row_logsumexp,
            column_logsumexp=found.column_logsumexp,
            target_similarity=found.target_similarity,
            norm_variance=found.norm_variance,
            moments=_moments(found.coefficient_mean, found.coefficient_covariance, basis),
            direction=direction,
        )


@dataclass(frozen=True)
class LowRankIncrements(Increments):
    """O(A·B·K + B·K·D) numbers instead of A·B·D."""

    coefficients: Tensor  # (B, K, A) c_ijk
    basis: Tensor  # (B, K, D) the vectors E_jk
    norm: Tensor  # (A, B) ‖Δ_ij‖

    def moments(self) -> Moments:
        return _moments(**coefficient_moments(self.coefficients), basis=self.basis)

    def directional_diversity(self, diversity: Diversity, backend: str) -> Tensor:
        if (samples := diversity.samples) is not None:
            texts = torch.arange(len(samples), device=samples.device).unsqueeze(1)
            sampled = self.coefficients[samples, :, texts]
            return _sampled_diversity(sampled, self.basis, diversity, backend)
        unit = self.coefficients / self.norm.T.clamp_min(1e-12).unsqueeze(1)
        arguments = unit, self.basis, diversity.alpha
        return resolve("direction", backend, unit.device, *arguments)(*arguments)

    def materialize(self) -> Tensor:
        return torch.einsum("bka,bkd->abd", self.coefficients, self.basis)


def _sampled_diversity(
    coefficients: Tensor, basis: Tensor, diversity: Diversity, backend: str
) -> Tensor:
    """From the coefficients (A, n, K) of the sampled pairs."""
    arguments = coefficients, basis, diversity.samples, diversity.alpha
    return resolve("sampled_direction", backend, basis.device, *arguments)(*arguments)


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
