"""InfoNCE, and the whole GARE loss as a drop-in module."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from garevla.backends import resolve_backend
from garevla.pairs import Increments
from garevla.psi import CrossAttentionPsi
from garevla.regularisers import (
    direction_diversity,
    information_bottleneck,
    trust_region,
)
from garevla.similarity import GarePairs, full_precision, gare_pairs
from garevla.validation import check_positive


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
    targets = check_targets(targets, similarity)
    logits = similarity * logit_scale
    text_to_video = F.cross_entropy(logits, targets)
    text_log_prob = logits.log_softmax(dim=0).gather(1, targets.unsqueeze(1)).squeeze(1)
    count = torch.bincount(targets, minlength=similarity.shape[1]).to(logits.dtype)
    per_video = text_log_prob / count[targets]
    video_to_text = -per_video.sum() / (count > 0).sum()
    return 0.5 * (text_to_video + video_to_text)


def check_targets(targets: Tensor | None, similarity: Tensor) -> Tensor:
    """Targets (A,) int64 of a similarity matrix (A, B), the diagonal where none are given."""
    if similarity.dim() != 2 or 0 in similarity.shape:
        raise ValueError(
            f"similarity must have shape (A, B), not empty, got {tuple(similarity.shape)}"
        )
    num_texts, num_videos = similarity.shape
    if targets is None:
        if num_texts != num_videos:
            raise ValueError(
                f"{num_texts} texts against {num_videos} videos: give targets (A,), the video "
                "index of each text"
            )
        return torch.arange(num_texts, device=similarity.device)
    if targets.shape != (num_texts,) or targets.dtype != torch.int64:
        raise ValueError(
            f"targets must be int64 of shape (A,) = ({num_texts},), "
            f"got {targets.dtype} of shape {tuple(targets.shape)}"
        )
    if targets.device != similarity.device:
        raise ValueError(f"targets is on {targets.device}, the features on {similarity.device}")
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

    Args:
        psi: the increment network; its parameters are this module's.
        pool_temperature: τ_p of the text-conditioned pooling.
        alpha: α of the directional diversity.
        beta: weight of the information bottleneck (summed over D: 1e-4; mean over D: 0.07).
        lambda_direction: weight of the directional diversity, the only term cubic in the batch;
            0 leaves it out.
        lambda_trust: weight of the trust region.
        trust_floor: the trust region is 0 once below −trust_floor.
        backend: as in :func:`garevla.gare_similarity`.
        bottleneck_reduction: ``"sum"`` (published code) or ``"mean"`` (paper) over D.

    Raises:
        ValueError: a negative weight, a temperature or α that is not positive.
        BackendUnavailableError: the requested backend cannot run here.
    """

    def __init__(
        self,
        psi: CrossAttentionPsi,
        *,
        pool_temperature: float = 3.0,
        alpha: float = 2.0,
        beta: float = 1e-4,
        lambda_direction: float = 0.01,
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
        resolve_backend(backend)
        self.psi = psi
        self.pool_temperature = pool_temperature
        self.alpha = alpha
        self.beta = beta
        self.lambda_direction = lambda_direction
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
        similarity, increments = self.pairs(text_features, frame_features, frame_mask)
        with full_precision(text_features):
            terms = self.terms(similarity, increments, logit_scale, targets)
        return GareLossOutput(
            **terms, similarity=similarity.detach() if return_similarity else None
        )

    def pairs(
        self, text_features: Tensor, frame_features: Tensor, frame_mask: Tensor | None
    ) -> GarePairs:
        """Similarity and increments by this loss's settings; see :func:`garevla.gare_pairs`."""
        resolve_backend(self.backend)
        return gare_pairs(
            text_features,
            frame_features,
            self.psi,
            frame_mask,
            pool_temperature=self.pool_temperature,
        )

    def terms(
        self,
        similarity: Tensor,
        increments: Increments,
        logit_scale: Tensor | float,
        targets: Tensor | None = None,
    ) -> dict[str, Tensor | None]:
        """The fields of :class:`GareLossOutput` but the similarity."""
        loss = contrastive = info_nce(similarity, logit_scale, targets)
        bottleneck = direction = trust = None
        if self.beta:
            bottleneck = information_bottleneck(increments, self.bottleneck_reduction)
            loss = loss + self.beta * bottleneck
        if self.lambda_trust:
            trust = trust_region(increments, self.trust_floor)
            loss = loss + self.lambda_trust * trust
        if self.lambda_direction:
            direction = direction_diversity(increments, self.alpha)
            loss = loss + self.lambda_direction * direction
        return {
            "loss": loss,
            "contrastive": contrastive,
            "bottleneck": bottleneck,
            "direction": direction,
            "trust_region": trust,
        }
