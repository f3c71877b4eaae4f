"""Public functions of the pair operation: similarity, and increments for analysis."""

from __future__ import annotations

from torch import Tensor

from garevla.head.lengths import compare_lengths
from garevla.head.videos import Videos, prepare_frames
from garevla.increments.base import EncodedVideos, GarePairs, IncrementNetwork
from garevla.ops.derivatives import refuse_transforms
from garevla.ops.precision import full_precision
from garevla.utils.numerics import widest_dtype, with_dtype
from garevla.utils.validation import check_features, check_positive, check_psi, check_text_features


def gare_similarity(
    text_features: Tensor,
    frame_features: Tensor | Videos,
    psi: IncrementNetwork | None = None,
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
        frame_features: (B, F, D) floating point, not normalized; or the videos that
            :func:`garevla.encode_videos` made of them, with neither ``psi`` nor ``frame_mask``.
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
    text, videos = encode(text_features, frame_features, psi, frame_mask)
    with full_precision(text):
        return videos.similarity(text, pool_temperature, backend)


def gare_increments(
    text_features: Tensor,
    frame_features: Tensor | Videos,
    psi: IncrementNetwork | None = None,
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
    frame_features: Tensor | Videos,
    psi: IncrementNetwork | None = None,
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
    text, videos = encode(text_features, frame_features, psi, frame_mask)
    with full_precision(text):
        return videos.pairs(text, pool_temperature, backend)


def encode(
    text_features: Tensor,
    frame_features: Tensor | Videos,
    psi: IncrementNetwork | None,
    frame_mask: Tensor | None,
) -> tuple[Tensor, EncodedVideos]:
    """Texts (A, D) and videos in the widest dtype involved, at least float32.

    Raises:
        TypeError, ValueError: as :func:`gare_similarity`.
    """
    refuse_transforms()
    if isinstance(frame_features, Videos):
        return _with_kept(text_features, frame_features, psi, frame_mask)
    check_psi(psi)
    assert psi is not None
    check_features(text_features, frame_features, psi.dim)
    dtype = widest_dtype(text_features, frame_features, psi.dtype)
    with full_precision(text_features):
        frames, mask = prepare_frames(frame_features, frame_mask, dtype, psi)
        text, videos = with_dtype(text_features, dtype), psi.encode_videos(frames, mask)
        compare_lengths(psi, text, videos)
    return text, videos


def _with_kept(
    text_features: Tensor,
    videos: Videos,
    psi: IncrementNetwork | None,
    frame_mask: Tensor | None,
) -> tuple[Tensor, EncodedVideos]:
    for name, value in (("psi", psi), ("frame_mask", frame_mask)):
        if value is not None:
            raise TypeError(f"{name} has no part in scoring kept videos: leave it out")
    check_text_features(text_features, videos.dim, videos.device, "the videos")
    if len(videos) == 0:
        raise ValueError("videos is empty")
    return with_dtype(text_features, videos.computing_dtype(text_features)), videos
