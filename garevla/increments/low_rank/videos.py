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
    VideoParts,
)
from garevla.increments.low_rank.compact import CompactFactors, RowMaps
from garevla.increments.low_rank.factors import (
    IncrementFactors,
    VideoFactors,
    exchanged_factors,
    text_factors,
    video_factors,
)
from garevla.increments.products import IncrementProducts, LowRankProducts
from garevla.ops.backends import check_available, resolve
from garevla.ops.eager.chunks import CHUNK_ELEMENTS
from garevla.ops.eager.statistics import coefficient_moments


class LowRankNetwork(IncrementNetwork):
    """A ψ whose increments are combinations of K vectors of their video (docs/derivation.md).

    A new one computes :class:`IncrementFactors` of the frames; nothing else.
    """

    @abstractmethod
    def forward(self, frame_features: Tensor, frame_mask: Tensor) -> IncrementFactors:
        """Factors of every increment of these videos.

        Args:
            frame_features: (B, F, D), float32 or float64, finite everywhere.
            frame_mask: (B, F) bool, true for valid frames. What comes of the others does not
                matter, as long as it is finite: the pair operation gives them weight 0.

        Returns:
            The factors, in the dtype of ``frame_features``.
        """

    def encode_videos(self, frame_features: Tensor, frame_mask: Tensor) -> EncodedVideos:
        return LowRankVideos(
            video_factors(frame_features, frame_mask, self(frame_features, frame_mask))
        )

    def encode_texts(
        self, text_features: Tensor, word_features: Tensor, word_mask: Tensor
    ) -> EncodedVideos:
        return LowRankVideos(
            exchanged_factors(
                text_features, word_features, word_mask, self(word_features, word_mask)
            )
        )

    def row_maps(self, dtype: torch.dtype) -> RowMaps:
        """The maps that a compact form of videos keeps in place of their keys and bases.

        Raises:
            ValueError: this network has none, or not as it is set now.
        """
        raise ValueError(f"{type(self).__name__} has no compact form of its videos")

    def encode_compact(self, frame_features: Tensor, frame_mask: Tensor) -> EncodedVideos:
        maps = self.row_maps(frame_features.dtype)
        whole = video_factors(frame_features, frame_mask, self(frame_features, frame_mask))
        return CompactVideos(CompactFactors.of(frame_features, whole, maps))


@dataclass(frozen=True)
class LowRankVideos(EncodedVideos):
    """Factors of B videos."""

    factors: VideoFactors

    def parts(self) -> VideoParts:
        tensors = self.factors._asdict()
        eps = tensors.pop("layer_norm_eps")
        # It is in rows, too.
        del tensors["basis"]
        return VideoParts(tensors, {}, {"layer_norm_eps": eps}, ("rows",))

    @classmethod
    def from_parts(cls, parts: VideoParts) -> LowRankVideos:
        basis_size = parts.of_videos["basis_gram"].shape[1]
        basis = parts.of_videos["rows"][:, -basis_size:]
        fields: dict[str, Any] = {**parts.of_videos, **parts.constants, "basis": basis}
        return cls(VideoFactors(**fields))

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
            norm_mean=found.norm_mean,
            norm_variance=found.norm_variance,
            moments=_moments(found.coefficient_mean, found.coefficient_covariance, basis),
            direction=direction,
        )


# Beyond this many texts the compiled operation on whole factors is worth making them.
_FEW_TEXTS = 64


@dataclass(frozen=True)
class CompactVideos(EncodedVideos):
    """Factors of B videos without what a text can bring along."""

    factors: CompactFactors

    def parts(self) -> VideoParts:
        factors = self.factors
        of_videos = factors.video._asdict()
        eps = of_videos.pop("layer_norm_eps")
        del of_videos["rows"], of_videos["basis"]
        shared = factors.maps._asdict()
        constants = {"layer_norm_eps": eps, "eps": shared.pop("eps")}
        of_videos |= {"frames": factors.frames, "inverse_std": factors.inverse_std}
        return VideoParts(of_videos, shared, constants, ("frames",))

    @classmethod
    def from_parts(cls, parts: VideoParts) -> CompactVideos:
        fields: dict[str, Any] = {**parts.of_videos, **parts.constants}
        frames, inverse_std = fields.pop("frames"), fields.pop("inverse_std")
        maps = RowMaps(**parts.shared, eps=fields.pop("eps"))
        nothing = frames[:, :0]
        video = VideoFactors(**fields, rows=nothing, basis=nothing)
        return cls(CompactFactors(frames, inverse_std, maps, video))

    def similarity(self, text_features: Tensor, pool_temperature: float, backend: str) -> Tensor:
        if len(text_features) > _FEW_TEXTS:
            return self._whole().similarity(text_features, pool_temperature, backend)
        check_available(backend, text_features.device)
        text = text_factors(text_features)
        return torch.cat(
            [part.terms(text, pool_temperature).similarity for part in self._chunks(len(text[0]))]
        ).T

    def pairs(self, text_features: Tensor, pool_temperature: float, backend: str) -> GarePairs:
        return self._whole().pairs(text_features, pool_temperature, backend)

    def statistics(self, *arguments: Any, **options: Any) -> PairStatistics:
        return self._whole().statistics(*arguments, **options)

    def _whole(self) -> LowRankVideos:
        return LowRankVideos(self.factors.expand())

    def _chunks(self, num_texts: int) -> list[CompactFactors]:
        attention, num_videos = self.factors.video.attention, len(self.factors.frames)
        step = max(1, CHUNK_ELEMENTS // (num_texts * 3 * (attention + 1)))
        return [self.factors.narrow(i, i + step) for i in range(0, num_videos, step)]


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

    def products(self) -> IncrementProducts:
        return LowRankProducts(self.coefficients, self.basis)


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
