"""InfoNCE, and the whole GARE loss as a drop-in module."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from garevla.head.regularizers import (
    bottleneck_of_moments,
    direction_diversity,
    trust_region_of_variance,
)
from garevla.head.similarity import full_precision, gare_similarity, pair_factors
from garevla.increments.low_rank.cross_attention import CrossAttentionPsi
from garevla.ops.backends import check_backend, resolve_backend
from garevla.ops.eager.direction import draw_samples, sampled_direction
from garevla.ops.eager.pairs import Increments
from garevla.ops.eager.statistics import statistics_of_pairs
from garevla.utils.validation import check_features, check_positive


def info_nce(
    similarity: Tensor, logit_scale: Tensor | float, targets: Tensor | None = None
) -> Tensor:
    """Symmetric InfoNCE: half the text-to-video plus half the video-to-text cross-entropy.

    Args:
        similarity: (A, B), texts by videos.
        logit_scale: the factor itself (the exponential of CLIP's learnt scale), 0-d or a number.
        targets: (A,) int64, the video of each text. ``None`` means text i belongs to video i and
            needs A = B. A video with several texts takes the mean cross-entropy over them; a
            video with none is left out of the video-to-text mean.

    Returns:
        0-d loss.

    Raises:
        ValueError: A ≠ B without targets; targets of the wrong shape, dtype or range.
    """
    if similarity.dim() != 2:
        raise ValueError(f"similarity must have shape (A, B), got {tuple(similarity.shape)}")
    targets = check_targets(targets, *similarity.shape, similarity.device)
    logits = similarity * logit_scale
    target_logits = logits.gather(1, targets.unsqueeze(1)).squeeze(1)
    return _info_nce(logits.logsumexp(dim=1), logits.logsumexp(dim=0), target_logits, targets)


def _info_nce(
    row_logsumexp: Tensor, column_logsumexp: Tensor, target_logits: Tensor, targets: Tensor
) -> Tensor:
    """InfoNCE from the logits' logsumexps (A) and (B) and the right pairs' logits (A)."""
    text_to_video = (row_logsumexp - target_logits).mean()
    # Not bincount, which makes the host wait for a GPU.
    count = torch.zeros_like(column_logsumexp).scatter_add(
        0, targets, torch.ones_like(target_logits)
    )
    per_video = (column_logsumexp[targets] - target_logits) / count[targets]
    video_to_text = per_video.sum() / (count > 0).sum()
    return 0.5 * (text_to_video + video_to_text)


def check_targets(
    targets: Tensor | None, num_texts: int, num_videos: int, device: torch.device
) -> Tensor:
    """Targets (A,) int64 of A texts and B videos, the diagonal where none are given."""
    if num_texts == 0 or num_videos == 0:
        raise ValueError(
            f"similarity must have shape (A, B), not empty, got {(num_texts, num_videos)}"
        )
    if targets is None:
        if num_texts != num_videos:
            raise ValueError(
                f"{num_texts} texts against {num_videos} videos: give targets (A,), the video "
                "index of each text"
            )
        return torch.arange(num_texts, device=device)
    if targets.shape != (num_texts,) or targets.dtype != torch.int64:
        raise ValueError(
            f"targets must be int64 of shape (A,) = ({num_texts},), "
            f"got {targets.dtype} of shape {tuple(targets.shape)}"
        )
    if targets.device != device:
        raise ValueError(f"targets is on {targets.device}, the features on {device}")
    if targets.device.type == "cpu" and not torch.compiler.is_compiling():
        low, high = int(targets.min()), int(targets.max())
        if low < 0 or high >= num_videos:
            raise ValueError(
                f"targets must be video indices in [0, {num_videos}), got {low}..{high}"
            )
    return targets


@dataclass(frozen=True)
class GareLossOutput:
    """The GARE loss and its terms, 0-d tensors; the terms are not multiplied by their weights."""

    loss: Tensor
    """contrastive + β·bottleneck + λ_trust·trust_region + λ_direction·direction"""
    contrastive: Tensor
    bottleneck: Tensor | None
    """None where its weight is 0: not computed."""
    direction: Tensor | None
    """None where its weight is 0: not computed."""
    trust_region: Tensor | None
    """None where its weight is 0: not computed."""
    similarity: Tensor | None = None
    """(A, B), detached, where it was asked for."""


class GareLoss(nn.Module):
    """The whole GARE training loss (NeurIPS 2025): InfoNCE on the corrected similarity and the
    three regularisers of the increments, without any (A, B, D) tensor.

    Without the exact directional diversity (``lambda_direction=0`` or ``direction_samples``), the
    native backend streams: memory beyond the features and their factors grows as A + B·K²,
    K = heads·F + 2, and no (A, B) tensor exists either.

    Args:
        psi: the increment network; its parameters are this module's.
        pool_temperature: τ_p of the text-conditioned pooling.
        alpha: α of the directional diversity.
        beta: weight of the information bottleneck (summed over D: 1e-4; mean over D: 0.07).
        lambda_direction: weight of the directional diversity, the only term cubic in the batch;
            0 leaves it out.
        direction_samples: n ≥ 2, to estimate the directional diversity from n videos per text,
            drawn anew each time from torch's global generator, where the cubic term is out of
            reach; the estimate of its inner mean is unbiased. ``None``, or n ≥ B, is exact.
        lambda_trust: weight of the trust region.
        trust_floor: the trust region is 0 once below −trust_floor.
        backend: as in :func:`garevla.gare_similarity`.
        bottleneck_reduction: ``"sum"`` (published code) or ``"mean"`` (paper) over D.

    Raises:
        ValueError: a negative weight, a temperature or α that is not positive, fewer than two
            direction_samples, an unknown backend.
    """

    def __init__(
        self,
        psi: CrossAttentionPsi,
        *,
        pool_temperature: float = 3.0,
        alpha: float = 2.0,
        beta: float = 1e-4,
        lambda_direction: float = 0.01,
        direction_samples: int | None = None,
        lambda_trust: float = 0.01,
        trust_floor: float = 0.5,
        backend: str = "auto",
        bottleneck_reduction: Literal["sum", "mean"] = "sum",
    ) -> None:
        super().__init__()
        check_positive("pool_temperature", pool_temperature)
        check_positive("alpha", alpha)
        weights = {"beta": beta, "lambda_direction": lambda_direction, "lambda_trust": lambda_trust}
        for name, value in {**weights, "trust_floor": trust_floor}.items():
            if not 0.0 <= value < float("inf"):
                raise ValueError(f"{name} must be a finite number, at least 0, got {value}")
        if bottleneck_reduction not in ("sum", "mean"):
            raise ValueError(
                f"bottleneck_reduction must be 'sum' or 'mean', got {bottleneck_reduction!r}"
            )
        if direction_samples is not None and direction_samples < 2:
            raise ValueError(f"direction_samples must be at least 2, got {direction_samples}")
        check_backend(backend)
        self.psi = psi
        self.pool_temperature = pool_temperature
        self.alpha = alpha
        self.beta = beta
        self.lambda_direction = lambda_direction
        self.direction_samples = direction_samples
        self.lambda_trust = lambda_trust
        self.trust_floor = trust_floor
        self.backend = backend
        self.bottleneck_reduction = bottleneck_reduction

    def extra_repr(self) -> str:
        return (
            f"pool_temperature={self.pool_temperature}, alpha={self.alpha}, beta={self.beta}, "
            f"lambda_direction={self.lambda_direction}, lambda_trust={self.lambda_trust}, "
            f"trust_floor={self.trust_floor}, backend={self.backend!r}"
        )

    def similarity(
        self, text_features: Tensor, frame_features: Tensor, frame_mask: Tensor | None = None
    ) -> Tensor:
        """The similarity (A, B) that this loss trains: :func:`garevla.gare_similarity` with its ψ,
        temperature and backend, whose arguments and errors it shares."""
        return gare_similarity(
            text_features,
            frame_features,
            self.psi,
            frame_mask,
            pool_temperature=self.pool_temperature,
            backend=self.backend,
        )

    def forward(
        self,
        text_features: Tensor,
        frame_features: Tensor,
        logit_scale: Tensor | float,
        frame_mask: Tensor | None = None,
        *,
        targets: Tensor | None = None,
        return_similarity: bool = False,
    ) -> GareLossOutput:
        """The loss of a batch of A texts and B videos.

        Args:
            text_features: (A, D), not normalised.
            frame_features: (B, F, D), not normalised.
            logit_scale: the factor itself, not its logarithm; CLIP clamps it at 100.
            frame_mask: (B, F), 1 or True for a valid frame.
            targets: (A,) int64, the video of each text, as in :func:`info_nce`.
            return_similarity: also return the (A, B) similarity, detached.

        Raises:
            TypeError, ValueError: as in :func:`garevla.gare_similarity` and :func:`info_nce`;
                fewer than two texts or videos with a regulariser switched on.
        """
        terms, similarity = self.terms(
            text_features,
            frame_features,
            logit_scale,
            frame_mask,
            targets,
            with_similarity=return_similarity,
        )
        return GareLossOutput(
            **terms, similarity=similarity.detach() if return_similarity else None
        )

    def terms(
        self,
        text_features: Tensor,
        frame_features: Tensor,
        logit_scale: Tensor | float,
        frame_mask: Tensor | None,
        targets: Tensor | None,
        *,
        with_similarity: bool,
    ) -> tuple[dict[str, Tensor | None], Tensor | None]:
        """The fields of :class:`GareLossOutput` but the similarity, and the similarity (A, B),
        which a streaming backend computes only if asked for."""
        check_features(text_features, frame_features, self.psi.dim)
        attention = self.psi.num_heads * frame_features.shape[1]
        backend = resolve_backend(self.backend, text_features.device, attention)
        num_texts, num_videos = len(text_features), len(frame_features)
        targets = check_targets(targets, num_texts, num_videos, text_features.device)
        exact_direction, samples = False, None
        if self.lambda_direction:
            exact_direction = self.direction_samples is None or self.direction_samples >= num_videos
            if not exact_direction:
                samples = draw_samples(
                    num_texts, num_videos, self.direction_samples, text_features.device
                )
        with full_precision(text_features):
            text, video = pair_factors(text_features, frame_features, self.psi, frame_mask)
            scale = torch.as_tensor(logit_scale, device=text_features.device)
            scale = scale.to(text.features.dtype).reshape(())
            pairs = None
            if exact_direction or with_similarity:
                pairs = backend.pair_terms(text, video, self.pool_temperature)
                statistics = statistics_of_pairs(pairs, scale, targets, samples)
            else:
                statistics = backend.pair_statistics(
                    text, video, self.pool_temperature, scale, targets, samples
                )

            loss = contrastive = _info_nce(
                statistics.row_logsumexp,
                statistics.column_logsumexp,
                scale * statistics.target_similarity,
                targets,
            )
            bottleneck = direction = trust = None
            if self.beta:
                bottleneck = bottleneck_of_moments(
                    statistics.coefficient_mean,
                    statistics.coefficient_covariance,
                    video.basis,
                    num_texts,
                    self.bottleneck_reduction,
                )
                loss = loss + self.beta * bottleneck
            if self.lambda_trust:
                trust = trust_region_of_variance(
                    statistics.norm_variance, num_videos, self.trust_floor
                )
                loss = loss + self.lambda_trust * trust
            if exact_direction:
                increments = Increments(pairs.coefficients, video.basis, pairs.increment_norm)
                direction = direction_diversity(increments, self.alpha, backend=backend.name)
            elif samples is not None:
                direction = sampled_direction(
                    statistics.sampled_coefficients, video.basis, samples, self.alpha
                )
            if direction is not None:
                loss = loss + self.lambda_direction * direction
        terms = {
            "loss": loss,
            "contrastive": contrastive,
            "bottleneck": bottleneck,
            "direction": direction,
            "trust_region": trust,
        }
        return terms, None if pairs is None else pairs.similarity.T
