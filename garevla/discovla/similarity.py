"""DiscoVLA's two similarities of videos: by the mean frame, and frame by frame (CVPR 2025)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from garevla.ops.backends import resolve
from garevla.ops.precision import full_precision
from garevla.utils.numerics import widest_dtype, with_dtype
from garevla.utils.validation import (
    as_frame_mask,
    as_logit_scale,
    check_features,
    check_frame_features,
)


def mean_frame_similarity(
    text_features: Tensor, frame_features: Tensor, frame_mask: Tensor | None = None
) -> Tensor:
    """DiscoVLA's similarity: cosine of a text and the mean of a video's L2-normalized frames.

    Args:
        text_features: (A, D) floating point, not normalized.
        frame_features: (B, F, D) floating point, not normalized.
        frame_mask: (B, F), 1 or True for a valid frame; ``None`` means all are. Padded frames
            take no part, whatever they hold.

    Returns:
        (A, B) similarities in [−1, 1], in float32 at least, also under autocast.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape, device or value; a video
            with no valid frame.
    """
    check_features(text_features, frame_features, text_features.shape[-1])
    mask = as_frame_mask(frame_mask, frame_features)
    with full_precision(text_features):
        text_features, frame_features = _as_one_dtype(text_features, frame_features)
        # Cosine needs the direction of the mean alone: the sum has it too.
        videos = _normalize(frame_features, mask).sum(dim=1)
        return F.normalize(text_features, dim=-1) @ F.normalize(videos, dim=-1).T


def frame_level_similarity(
    pseudo_caption_features: Tensor,
    frame_features: Tensor,
    logit_scale: Tensor | float,
    caption_mask: Tensor | None = None,
    frame_mask: Tensor | None = None,
    *,
    backend: str = "auto",
) -> Tensor:
    """Similarity of videos' pseudo captions with videos' frames (pseudo image-level alignment).

    With S the cosines of the captions t of a and the frames v of b: every caption takes its best
    frame, max_v S, every frame its best caption, max_t S; each is pooled over captions, or
    frames, by Σ x·softmax(logit_scale·x); the result is the mean of both.

    S is never kept (:func:`garevla.ops.eager.frame_alignment.frame_alignment`).

    Args:
        pseudo_caption_features: (A, F, D) floating point, not normalized.
        frame_features: (B, G, D) floating point, not normalized.
        logit_scale: the factor itself, 0-d or a number.
        caption_mask: (A, F), 1 or True for a valid caption; ``None`` means all are.
        frame_mask: (B, G), likewise. What is padded takes no part, whatever it holds.
        backend: ``"auto"`` or a name from :func:`garevla.backend_status`; see
            :func:`garevla.use_backend`. ``"native"`` takes the eager operation; ``"triton"`` has
            no kernels for float64.

    Returns:
        (A, B) similarities in [−1, 1], in float32 at least, also under autocast.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape, device or value; a video
            with no valid caption or frame.
        BackendUnavailableError: the requested backend cannot run here, or not with these features.
    """
    _check_captions(pseudo_caption_features, caption_mask)
    check_frame_features(frame_features, pseudo_caption_features.shape[2])
    logit_scale = as_logit_scale(logit_scale)
    if caption_mask is not None:
        caption_mask = as_frame_mask(caption_mask, pseudo_caption_features)
    if frame_mask is not None:
        frame_mask = as_frame_mask(frame_mask, frame_features)
    captions, frames = _as_one_dtype(pseudo_caption_features, frame_features)
    with full_precision(frames):
        captions, frames = _normalize(captions, caption_mask), _normalize(frames, frame_mask)
        arguments = captions, frames, logit_scale, caption_mask, frame_mask
        return resolve("frame_alignment", backend, frames.device, *arguments)(*arguments)


def _normalize(features: Tensor, mask: Tensor | None) -> Tensor:
    """Features over their length; zeros at padding, which may hold NaN."""
    if mask is not None:
        features = torch.where(mask.unsqueeze(-1), features, 0.0)
    return F.normalize(features, dim=-1)


def _as_one_dtype(*features: Tensor) -> tuple[Tensor, ...]:
    dtype = widest_dtype(*features)
    return tuple(with_dtype(tensor, dtype) for tensor in features)


def _check_captions(pseudo_caption_features: Tensor, caption_mask: Tensor | None) -> None:
    shape = tuple(pseudo_caption_features.shape)
    if not pseudo_caption_features.is_floating_point() or len(shape) != 3 or 0 in shape:
        raise ValueError(
            "pseudo_caption_features must be floating point of shape (A, F, D), not empty, got "
            f"{pseudo_caption_features.dtype} of shape {shape}"
        )
    if caption_mask is not None and caption_mask.shape != shape[:2]:
        raise ValueError(
            f"caption_mask must have shape (A, F) = {shape[:2]}, got {tuple(caption_mask.shape)}"
        )
