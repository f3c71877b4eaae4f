"""The ideal increment Δ* of every pair: the first-order solution under a trust region.

InfoNCE, as a function of all increments together, is to first order around Δ = 0

    L(Δ) ≈ L(0) + Σ_ij ⟨g_ij, Δ_ij⟩,        g_ij = ∂L/∂Δ_ij at Δ = 0

whose smallest value under a trust region lies against the gradient: with a ball for each pair at

    ‖Δ_ij‖ ≤ ε                     Δ*_ij = −ε g_ij / ‖g_ij‖

and with one for all increments of an anchor, of which the long ones are at others' cost, at

    mean_j ‖Δ_ij‖² ≤ ε²            Δ*_ij = −ε √N g_ij / √(Σ_k ‖g_ik‖²)

Both turn the anchor in the plane of a_i and o_ij, towards a right other and away from a wrong one,
by the angle whose tangent is ‖Δ*_ij‖ / ‖a_i‖; so the similarity with Δ* follows from that without.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from garevla.analysis.gradients import InfoNCE, RowGradients, State, StreamedInfoNCE
from garevla.analysis.sides import Sides
from garevla.analysis.streaming import info_nce_of, row_chunks
from garevla.discovla.losses import DiscoVLALoss
from garevla.head.info_nce import Targets
from garevla.head.losses import GareLoss
from garevla.head.texts import Texts
from garevla.ops.precision import full_precision
from garevla.utils.modes import evaluation_mode
from garevla.utils.validation import check_positive

TrustRegion = Literal["pair", "anchor"]
"""Whose increments share a ball: none, or those of an anchor."""


def check_trust_region(trust_region: str) -> None:
    """Raise ValueError unless it is one of :data:`TrustRegion`."""
    if trust_region not in get_args(TrustRegion):
        raise ValueError(
            f"trust_region must be one of {get_args(TrustRegion)}, got {trust_region!r}"
        )


def ideal_lengths(
    gradients: RowGradients, radius: float | Tensor, trust_region: TrustRegion
) -> Tensor:
    """‖Δ*_ij‖ (m, N).

    Args:
        gradients: at Δ = 0.
        radius: ε; with ``"pair"`` also (m, N), one for each.
        trust_region: see :data:`TrustRegion`.
    """
    norm = gradients.norm
    if trust_region == "pair":
        return radius * (norm > 0).to(norm.dtype)
    whole = norm.norm(dim=1, keepdim=True)
    share = norm / whole.masked_fill(whole == 0, 1)
    return radius * math.sqrt(norm.shape[1]) * share


def similarity_after(gradients: RowGradients, lengths: Tensor) -> Tensor:
    """cos(a_i + Δ*_ij, o_ij) (m, N) with Δ* of lengths (m, N)."""
    norm = gradients.corrected_norm
    along = gradients.similarity * norm
    along = along - gradients.weight.sign() * gradients.sine * lengths
    return along / torch.hypot(norm, lengths).clamp_min(torch.finfo(norm.dtype).tiny)


@torch.no_grad()
def ideal_increments(
    loss: GareLoss | DiscoVLALoss,
    text_features: Tensor | Texts,
    frame_features: Tensor,
    logit_scale: Tensor | float,
    frame_mask: Tensor | None = None,
    *,
    radius: float,
    trust_region: TrustRegion = "pair",
    targets: Targets | None = None,
) -> Tensor:
    """Every pair's ideal increment Δ*_ij, materialized: for small batches only.

    It is what GARE (NeurIPS 2025) derives its network from, in our reading: docs/derivation.md.
    :func:`garevla.analysis.analyse` says what becomes of the loss, without these vectors.

    Args:
        loss: its similarity counts, without increments; its regularizers do not.
        text_features, frame_features, frame_mask: as :meth:`garevla.GareLoss.similarity`.
        logit_scale: the factor itself, 0-d or a number.
        radius: ε, in the units of the features.
        trust_region: ``"pair"``: each increment is at most ε long; ``"anchor"``: the root mean
            square of all increments of a text is (of a video, where videos are corrected).
        targets: (A,) the video of each text, as in :func:`garevla.info_nce`.

    Returns:
        (A, B, D) increments of the texts, or of the videos where these are corrected; in the
        features' dtype, at least float32. 0 where the loss has no gradient.

    Raises:
        TypeError, ValueError: as :func:`garevla.analysis.analyse`; a radius that is not positive.
    """
    check_positive("radius", radius)
    check_trust_region(trust_region)
    with evaluation_mode(loss), full_precision(frame_features):
        sides = Sides.of(loss, text_features, frame_features, frame_mask)
        info_nce, _ = info_nce_of(sides, logit_scale, targets)
        plain = StreamedInfoNCE(info_nce)
        chunks = row_chunks(sides)
        for rows in chunks:
            plain.add(rows, State(sides.rows(rows), corrected=False).similarity)
        found = [_vectors(sides, info_nce, plain, rows, radius, trust_region) for rows in chunks]
    ideal = torch.cat(found)
    return ideal.transpose(0, 1) if sides.corrects == "video" else ideal


def _vectors(
    sides: Sides,
    info_nce: InfoNCE,
    plain: StreamedInfoNCE,
    rows: slice,
    radius: float,
    trust_region: TrustRegion,
) -> Tensor:
    """Δ* (m, N, D) of a few anchors."""
    pairs = sides.rows(rows)
    gradients = State(pairs, corrected=False).gradients(info_nce, rows, plain.column_logsumexp)
    pooled = torch.einsum("mnf,nfd->mnd", pairs.pool, pairs.frames.to(pairs.pool.dtype))
    others = F.normalize(pooled, dim=2)
    anchors = F.normalize(pairs.anchors.to(others.dtype), dim=1).unsqueeze(1)
    towards = F.normalize(others - gradients.similarity.unsqueeze(2) * anchors, dim=2)
    signed = -gradients.weight.sign() * ideal_lengths(gradients, radius, trust_region)
    return (signed.unsqueeze(2) * towards).to(pairs.anchors.dtype)
