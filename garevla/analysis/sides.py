"""The two sides of a similarity: what is corrected, and what that is compared with.

Everything an analysis asks of a pair lies in the span of four vectors: what is corrected (the
anchor a), its increment Δ, what it is compared with (the other o), and the other's mean, which the
gap is taken to. Their dot products follow from the features' and from those of Δ, none of which
needs a vector per pair (docs/derivation.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from garevla.discovla.losses import DiscoVLALoss
from garevla.head.losses import GareLoss
from garevla.head.similarity import Corrects, encode
from garevla.head.texts import Texts
from garevla.head.videos import Videos, prepare_frames
from garevla.increments.base import EncodedVideos
from garevla.increments.low_rank.factors import gram, mean_of_valid
from garevla.increments.products import IncrementProducts
from garevla.utils.numerics import widest_dtype
from garevla.utils.validation import as_frame_mask, check_features


@dataclass(frozen=True)
class PairRows:
    """All pairs of m anchors a_i with N others, in float64 where the device has it.

    ``others`` are o_ij = Σ_f pool_ijf · frame_jf. Without increments all that is said of them is 0.
    """

    anchors: Tensor  # (m, D) a_i
    frames: Tensor  # (N, F, D) what the others are pooled of
    pool: Tensor  # (m, N, F) weights, 0 at padding
    products: IncrementProducts | None
    anchor_norm: Tensor  # (m, 1) ‖a_i‖
    other_norm: Tensor  # (m, N) ‖o_ij‖
    anchor_other: Tensor  # (m, N) a_i·o_ij
    increment_norm: Tensor  # (m, N) ‖Δ_ij‖
    increment_anchor: Tensor  # (m, N) Δ_ij·a_i
    increment_other: Tensor  # (m, N) Δ_ij·o_ij
    increment_gap: Tensor  # (m, N) Δ_ij·(mean_j − a_i)
    gap_norm: Tensor  # (m, N) ‖mean_j − a_i‖

    @property
    def corrected_norm(self) -> Tensor:
        """(m, N) ‖a_i + Δ_ij‖."""
        squared = self.anchor_norm.square() + 2 * self.increment_anchor
        return (squared + self.increment_norm.square()).clamp_min(0).sqrt()

    def sum_of_others(self, weights: Tensor) -> Tensor:
        """Σ_j w_ij o_ij (m, D), weights w (m, N)."""
        weighted = (self.pool * weights.unsqueeze(2)).to(self.frames.dtype)
        return weighted.flatten(1) @ self.frames.flatten(0, 1)

    def sum_of_increments(self, weights: Tensor) -> Tensor:
        """Σ_j w_ij Δ_ij (m, D)."""
        if self.products is None:
            return torch.zeros_like(self.anchors)
        return self.products.sums(weights.to(self.anchors.dtype))

    def sum_of_corrected(self, weights: Tensor) -> Tensor:
        """Σ_j w_ij (a_i + Δ_ij) (m, D)."""
        total = weights.sum(dim=1, keepdim=True).to(self.anchors.dtype)
        return total * self.anchors + self.sum_of_increments(weights)


@dataclass(frozen=True)
class Sides:
    """M anchors and N others.

    The anchors are the texts and the others the videos, pooled by each text; where videos are
    corrected, the anchors are the mean frames and the others the texts.
    """

    corrects: Corrects | None
    """None: nothing is, there are no increments."""
    anchors: Tensor  # (M, D)
    frames: Tensor  # (N, F, D), zeros where padded
    mask: Tensor  # (N, F) bool
    means: Tensor  # (N, D)
    pool_temperature: float
    encoded: EncodedVideos | None
    backend: str

    @classmethod
    def of(
        cls,
        loss: GareLoss | DiscoVLALoss,
        text_features: Tensor | Texts,
        frame_features: Tensor,
        frame_mask: Tensor | None,
    ) -> Sides:
        """Encode features as the loss does.

        Args:
            loss: whose similarity is looked at; ψ is in evaluation mode.
            text_features, frame_features, frame_mask: as :meth:`garevla.GareLoss.similarity`.

        Raises:
            TypeError, ValueError: as :func:`garevla.gare_similarity`; kept videos; a ψ that reads
                padding.
        """
        if isinstance(frame_features, Videos):
            raise TypeError("analysis takes frame_features (B, F, D), not kept videos")
        if isinstance(loss, DiscoVLALoss):
            return cls._of_discovla(cast(Tensor, text_features), frame_features, frame_mask)
        if not isinstance(loss, GareLoss):
            raise TypeError(
                "loss must be a garevla.GareLoss, DiscoVLALoss or GareDiscoVLALoss, got "
                f"{type(loss).__name__}"
            )
        if loss.psi.reads_padding:
            raise ValueError("analysis does not know padding='published': load with 'ignored'")
        anchors, encoded = encode(
            text_features, frame_features, loss.psi, frame_mask, loss.corrects
        )
        if isinstance(text_features, Texts):  # corrects="video"
            texts = text_features.text_features.to(anchors.dtype)
            frames = texts.unsqueeze(1)
            mask = torch.ones(frames.shape[:2], dtype=torch.bool, device=frames.device)
            means = texts
        else:
            frames, mask = prepare_frames(frame_features, frame_mask, anchors.dtype, loss.psi)
            means = mean_of_valid(frames, mask)
        return cls(
            loss.corrects,
            anchors,
            frames,
            mask,
            means,
            loss.pool_temperature,
            encoded,
            loss.backend,
        )

    @classmethod
    def _of_discovla(
        cls, text_features: Tensor, frame_features: Tensor, frame_mask: Tensor | None
    ) -> Sides:
        """The mean of a video's normalized frames stands for it, whatever the text."""
        check_features(text_features, frame_features, text_features.shape[-1])
        mask = as_frame_mask(frame_mask, frame_features)
        dtype = widest_dtype(text_features, frame_features)
        frames = frame_features.to(dtype).masked_fill(~mask.unsqueeze(-1), 0.0)
        means = mean_of_valid(F.normalize(frames, dim=-1), mask)
        return cls(
            None,
            text_features.to(dtype),
            means.unsqueeze(1),
            mask.any(dim=1, keepdim=True),
            means,
            1.0,
            None,
            "auto",
        )

    @property
    def shape(self) -> tuple[int, int]:
        """M and N."""
        return len(self.anchors), len(self.frames)

    @property
    def wide_dtype(self) -> torch.dtype:
        """Of the pairs' numbers."""
        return torch.float32 if self.anchors.device.type == "mps" else torch.float64

    @cached_property
    def _frame_gram(self) -> Tensor:
        """(N, F, F)."""
        return gram(self.frames).to(self.wide_dtype)

    def rows(self, rows: slice) -> PairRows:
        """All pairs of a few anchors."""
        anchors, frames, means = self.anchors[rows], self.frames, self.means
        wide = self.wide_dtype
        dots = (anchors @ frames.flatten(0, 1).T).unflatten(1, frames.shape[:2]).to(wide)
        logits = (dots / self.pool_temperature).masked_fill(~self.mask, -torch.inf)
        pool = logits.softmax(dim=2)
        of_frames = pool.transpose(0, 1)  # (N, m, F)
        squared_other = (of_frames * (of_frames @ self._frame_gram)).sum(dim=2).T
        anchors_wide, means_wide = anchors.to(wide), means.to(wide)
        products = None
        zero = pool.new_zeros(pool.shape[:2])
        norm = with_anchor = with_other = with_gap = zero
        if self.encoded is not None:
            increments = self.encoded.pairs(anchors, self.pool_temperature, self.backend).increments
            products, norm = increments.products(), increments.norm.to(wide)
            with_anchor = products.with_texts(anchors).to(wide)
            vectors = torch.cat([frames, means.unsqueeze(1)], dim=1)
            with_frames = products.with_videos(vectors).to(wide)
            with_other = (pool * with_frames[..., :-1]).sum(dim=2)
            with_gap = with_frames[..., -1] - with_anchor
        return PairRows(
            anchors=anchors,
            frames=frames,
            pool=pool,
            products=products,
            anchor_norm=anchors_wide.norm(dim=1, keepdim=True),
            other_norm=squared_other.clamp_min(0).sqrt(),
            anchor_other=(pool * dots).sum(dim=2),
            increment_norm=norm,
            increment_anchor=with_anchor,
            increment_other=with_other,
            increment_gap=with_gap,
            gap_norm=torch.cdist(
                anchors_wide, means_wide, compute_mode="donot_use_mm_for_euclid_dist"
            ),
        )
