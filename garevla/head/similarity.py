"""Public functions of the pair operation: similarity, and increments for analysis."""

from __future__ import annotations

from typing import Literal, get_args

from torch import Tensor

from garevla.head.lengths import compare_lengths
from garevla.head.texts import Texts
from garevla.head.videos import Videos, prepare_features, prepare_frames
from garevla.increments.base import EncodedVideos, GarePairs, IncrementNetwork
from garevla.increments.low_rank.factors import mean_of_valid
from garevla.ops.derivatives import refuse_transforms
from garevla.ops.precision import full_precision
from garevla.utils.numerics import widest_dtype, with_dtype
from garevla.utils.validation import (
    check_features,
    check_positive,
    check_psi,
    check_text_features,
    check_words,
)

Corrects = Literal["text", "video"]
"""What the increments are added to."""
_CORRECTS = get_args(Corrects)  # which torch.compile of torch 2.4 cannot call


def check_corrects(corrects: str) -> None:
    """Raise ValueError unless it is one of :data:`Corrects`."""
    if corrects not in _CORRECTS:
        raise ValueError(f"corrects must be one of {_CORRECTS}, got {corrects!r}")


def gare_similarity(
    text_features: Tensor | Texts,
    frame_features: Tensor | Videos,
    psi: IncrementNetwork | None = None,
    frame_mask: Tensor | None = None,
    *,
    pool_temperature: float = 3.0,
    backend: str = "auto",
    corrects: Corrects = "text",
) -> Tensor:
    """Similarity of every text with every video under GARE's increments.

    ``s_ij = cos(t_i + Δ_ij, p_ij)``, where Δ_ij = ψ(v̄_j − t_i; frames of j) and p_ij is the
    text-conditioned pooling of the frames (GARE, NeurIPS 2025). Used in training and at test
    time. Exact, without any (A, B, D) tensor: see docs/derivation.md.

    With ``corrects="video"``, ``s_ij = cos(t_i, v̄_j + Δ_ij)`` and Δ_ij = ψ(v̄_j − t_i; words of i).

    Args:
        text_features: (A, D) floating point, not normalized; to correct videos,
            :class:`garevla.Texts`.
        frame_features: (B, F, D) floating point, not normalized; or the videos that
            :func:`garevla.encode_videos` made of them, with neither ``psi`` nor ``frame_mask``.
        psi: the increment network for D-dimensional features.
        frame_mask: (B, F), 1 or True for a valid frame; ``None`` means all are. Padded frames
            take no part, whatever they hold.
        pool_temperature: τ_p of the pooling softmax; published: 3. Corrected videos are not pooled.
        backend: ``"auto"`` or a name from :func:`garevla.backend_status`; see
            :func:`garevla.use_backend`.
        corrects: ``"text"`` or ``"video"``, to which increments are added.

    Returns:
        (A, B) similarities in [−1, 1], in float64 if an input or ψ is float64, else in float32
        (half-precision inputs are accumulated in float32, also under autocast).

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape, device or value; a video
            with no valid frame.
        BackendUnavailableError: the requested backend cannot run here.
    """
    check_positive("pool_temperature", pool_temperature)
    corrected, others = encode(text_features, frame_features, psi, frame_mask, corrects)
    with full_precision(corrected):
        similarity = others.similarity(corrected, pool_temperature, backend)
    return similarity if corrects == "text" else similarity.T


def gare_increments(
    text_features: Tensor | Texts,
    frame_features: Tensor | Videos,
    psi: IncrementNetwork | None = None,
    frame_mask: Tensor | None = None,
    *,
    corrects: Corrects = "text",
) -> Tensor:
    """Every pair's increment Δ_ij, materialized: for analysis of small batches only.

    Args and errors as in :func:`gare_similarity`.

    Returns:
        (A, B, D) increments; A·B·D numbers.
    """
    pairs = gare_pairs(text_features, frame_features, psi, frame_mask, corrects=corrects)
    with full_precision(pairs.similarity):
        increments = pairs.increments.materialize()
    return increments if corrects == "text" else increments.transpose(0, 1)


def gare_pairs(
    text_features: Tensor | Texts,
    frame_features: Tensor | Videos,
    psi: IncrementNetwork | None = None,
    frame_mask: Tensor | None = None,
    *,
    pool_temperature: float = 3.0,
    backend: str = "auto",
    corrects: Corrects = "text",
) -> GarePairs:
    """Similarity and increments of every pair: what the regularizers are computed from.

    Args and errors as in :func:`gare_similarity`. With a cross-attention ψ, memory grows as A·B·K,
    K = heads·F + 2. With ``corrects="video"`` texts and videos change places in the increments:
    their first axis counts the videos, and the regularizers' videos are the texts.
    """
    check_positive("pool_temperature", pool_temperature)
    corrected, others = encode(text_features, frame_features, psi, frame_mask, corrects)
    with full_precision(corrected):
        pairs = others.pairs(corrected, pool_temperature, backend)
    return pairs if corrects == "text" else pairs._replace(similarity=pairs.similarity.T)


def encode(
    text_features: Tensor | Texts,
    frame_features: Tensor | Videos,
    psi: IncrementNetwork | None,
    frame_mask: Tensor | None,
    corrects: Corrects = "text",
) -> tuple[Tensor, EncodedVideos]:
    """What is corrected, and the others encoded, in the widest dtype involved, at least float32:
    texts (A, D) and videos, or mean frames (B, D) and texts in the place of videos.

    Raises:
        TypeError, ValueError: as :func:`gare_similarity`.
    """
    refuse_transforms()
    check_corrects(corrects)
    if corrects == "video":
        return _exchanged(text_features, frame_features, psi, frame_mask)
    if isinstance(text_features, Texts):
        raise TypeError('texts with words are for corrects="video"; give their text_features alone')
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


def _exchanged(
    texts: Tensor | Texts,
    frame_features: Tensor | Videos,
    psi: IncrementNetwork | None,
    frame_mask: Tensor | None,
) -> tuple[Tensor, EncodedVideos]:
    """Mean frames, and texts in the place of videos."""
    if not isinstance(texts, Texts):
        raise TypeError(
            'corrects="video" takes garevla.Texts(text_features, word_features, word_mask), whose '
            f"words the increments are made of, got {type(texts).__name__}"
        )
    if isinstance(frame_features, Videos):
        raise TypeError(
            'corrects="video" takes frame_features: kept videos are what psi made of frames, and '
            "here it sees the words"
        )
    check_psi(psi)
    assert psi is not None
    check_features(texts.text_features, frame_features, psi.dim)
    check_words(texts.word_features, frame_features.device)
    dtype = widest_dtype(texts.text_features, texts.word_features, frame_features, psi.dtype)
    with full_precision(frame_features):
        frames, mask = prepare_features(frame_features, frame_mask, dtype)
        words, word_mask = prepare_features(texts.word_features, texts.word_mask, dtype, "word")
        corrected = mean_of_valid(frames, mask)
        others = psi.encode_texts(with_dtype(texts.text_features, dtype), words, word_mask)
        compare_lengths(psi, corrected, others, "mean frames")
    return corrected, others


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
