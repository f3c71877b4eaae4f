"""Public functions of the pair operation: similarity, and increments for analysis."""

from __future__ import annotations

from torch import Tensor

from garevla.increments.base import EncodedVideos, GarePairs, IncrementNetwork
from garevla.ops.precision import full_precision
from garevla.utils.numerics import widest_dtype, with_dtype
from garevla.utils.validation import as_frame_mask, check_features, check_positive


def gare_similarity(
    text_features: Tensor,
    frame_features: Tensor,
    psi: IncrementNetwork,
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
        text_features: (A, D) floating point, not normalized.
        frame_features: (B, F, D) floating point, not normalized.
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
    with full_precision(text_features):
        text, videos = encode(text_features, frame_features, psi, frame_mask)
        return videos.similarity(text, pool_temperature, backend)


def gare_increments(
    text_features: Tensor,
    frame_features: Tensor,
    psi: IncrementNetwork,
    frame_mask: Tensor | None = None,
) -> Tensor:
    """Every pair's increment Δ_ij, materialized: for analysis of small batches only.

    Args and errors as in :func:`gare_similarity`.

    Returns:
        (A, B, D) increments; A·B·D numbers.
    """
    pairs = gare_pairs(text_features, frame_features, psi, frame_mask)
    with full_precision(text_features):
        return pairs.increments.materialize()


def gare_pairs(
    text_features: Tensor,
    frame_features: Tensor,
    psi: IncrementNetwork,
    frame_mask: Tensor | None = None,
    *,
    pool_temperature: float = 3.0,
    backend: str = "auto",
) -> GarePairs:
    """Similarity and increments of every pair: what the regularizers are computed from.

    Args and errors as in :func:`gare_similarity`. With a cross-attention ψ, memory grows as A·B·K,
    K = heads·F + 2.
    """
    check_positive("pool_temperature", pool_temperature)
    check_features(text_features, frame_features, psi.dim)
    with full_precision(text_features):
        text, videos = encode(text_features, frame_features, psi, frame_mask)
        return videos.pairs(text, pool_temperature, backend)


def encode(
    text_features: Tensor,
    frame_features: Tensor,
    psi: IncrementNetwork,
    frame_mask: Tensor | None,
) -> tuple[Tensor, EncodedVideos]:
    """Texts (A, D) and videos, whose features are checked, in the widest dtype involved, at least
    float32."""
    mask = as_frame_mask(frame_mask, frame_features)
    dtype = widest_dtype(text_features, frame_features, psi.dtype)
    frames = with_dtype(frame_features, dtype)
    if frame_mask is not None:
        # Not a product: padding may hold NaN.
        frames = frames.masked_fill(~mask.unsqueeze(-1), 0.0)
    return with_dtype(text_features, dtype), psi.encode_videos(frames, mask)
