"""Public functions of the pair operation: similarity, and increments for analysis."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import NamedTuple

import torch
from torch import Tensor

from garevla.increments.low_rank.cross_attention import CrossAttentionPsi
from garevla.increments.low_rank.factors import (
    TextFactors,
    VideoFactors,
    text_factors,
    video_factors,
)
from garevla.ops.backends import resolve_backend
from garevla.ops.eager.pairs import Increments
from garevla.utils.validation import (
    as_frame_mask,
    check_features,
    check_positive,
)


def gare_similarity(
    text_features: Tensor,
    frame_features: Tensor,
    psi: CrossAttentionPsi,
    frame_mask: Tensor | None = None,
    *,
    pool_temperature: float = 3.0,
    backend: str = "auto",
) -> Tensor:
    """Similarity of every text with every video under GARE's increments.

    ``s_ij = cos(t_i + Δ_ij, p_ij)``, where Δ_ij = ψ(v̄_j − t_i; frames of j) and p_ij is the
    text-conditioned pooling of the frames (GARE, NeurIPS 2025). Used in training and at test
    time. Exact, without any (A, B, D) tensor: see docs/derivation.md.

    Args:
        text_features: (A, D) floating point, not normalised.
        frame_features: (B, F, D) floating point, not normalised.
        psi: the increment network for D-dimensional features.
        frame_mask: (B, F), 1 or True for a valid frame; ``None`` means all are. Padded frames
            take no part, whatever they hold.
        pool_temperature: τ_p of the pooling softmax; published: 3.
        backend: ``"auto"`` or a name from :func:`garevla.backend_status`; see
            :func:`garevla.use_backend`.

    Returns:
        (A, B) similarities in [−1, 1], in float64 if an input or ψ is float64, else in float32
        (half-precision inputs are accumulated in float32, also under autocast).

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape, device or value; a video
            with no valid frame.
        BackendUnavailableError: the requested backend cannot run here.
    """
    check_positive("pool_temperature", pool_temperature)
    check_features(text_features, frame_features, psi.dim)
    attention = psi.num_heads * frame_features.shape[1]
    implementation = resolve_backend(backend, text_features.device, attention)
    with full_precision(text_features):
        factors = pair_factors(text_features, frame_features, psi, frame_mask)
        return implementation.pair_similarity(*factors, pool_temperature).T


def gare_increments(
    text_features: Tensor,
    frame_features: Tensor,
    psi: CrossAttentionPsi,
    frame_mask: Tensor | None = None,
) -> Tensor:
    """Every pair's increment Δ_ij, materialised: for analysis of small batches only.

    Args and errors as in :func:`gare_similarity`.

    Returns:
        (A, B, D) increments; A·B·D numbers.
    """
    check_features(text_features, frame_features, psi.dim)
    coefficients, basis, _ = gare_pairs(text_features, frame_features, psi, frame_mask).increments
    with full_precision(text_features):
        return torch.einsum("bka,bkd->abd", coefficients, basis)


class GarePairs(NamedTuple):
    """Scores and increments of all pairs of a batch."""

    similarity: Tensor  # (A, B)
    increments: Increments  # factored, for the regularisers


def gare_pairs(
    text_features: Tensor,
    frame_features: Tensor,
    psi: CrossAttentionPsi,
    frame_mask: Tensor | None = None,
    *,
    pool_temperature: float = 3.0,
    backend: str = "auto",
) -> GarePairs:
    """Similarity and factored increments of every pair: what the regularisers are computed from.

    Args and errors as in :func:`gare_similarity`. Memory grows as A·B·K, K = heads·F + 2.
    """
    check_positive("pool_temperature", pool_temperature)
    check_features(text_features, frame_features, psi.dim)
    attention = psi.num_heads * frame_features.shape[1]
    implementation = resolve_backend(backend, text_features.device, attention)
    with full_precision(text_features):
        text, video = pair_factors(text_features, frame_features, psi, frame_mask)
        similarity, coefficients, norm = implementation.pair_terms(text, video, pool_temperature)
        return GarePairs(similarity.T, Increments(coefficients, video.basis, norm))


def pair_factors(
    text_features: Tensor,
    frame_features: Tensor,
    psi: CrossAttentionPsi,
    frame_mask: Tensor | None,
) -> tuple[TextFactors, VideoFactors]:
    """Factors of checked texts and videos in the widest dtype involved, at least float32."""
    mask = as_frame_mask(frame_mask, frame_features)
    dtype = torch.float32
    for tensor in (text_features, frame_features, psi.mean_proj.weight):
        dtype = torch.promote_types(dtype, tensor.dtype)
    frames = frame_features.to(dtype)
    if frame_mask is not None:
        # Not a product: padding may hold NaN.
        frames = frames.masked_fill(~mask.unsqueeze(-1), 0.0)
    return text_factors(text_features.to(dtype)), video_factors(frames, mask, psi(frames))


def full_precision(like: Tensor) -> AbstractContextManager[None]:
    """Switch autocast off for the head: published in float32, and cheap in it."""
    return torch.autocast(device_type=like.device.type, enabled=False)
