"""DiscoVLA's frame-level similarity from features of length 1, eager (CVPR 2025)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from garevla.ops.derivatives import first_derivative_only
from garevla.ops.eager.chunks import CHUNK_ELEMENTS
from garevla.ops.products import linear


def frame_alignment(
    captions: Tensor,
    frames: Tensor,
    logit_scale: Tensor | float,
    caption_mask: Tensor | None = None,
    frame_mask: Tensor | None = None,
) -> Tensor:
    """:func:`garevla.frame_level_similarity` of features that are normalized already.

    The cosines are computed a few texts at a time; A·B·(F + G) numbers are kept for backward.

    Args:
        captions: (A, F, D) of length 1, finite where padded.
        frames: (B, G, D), likewise.
        logit_scale: the factor itself, 0-d or a number.
        caption_mask: (A, F) bool; ``None`` means all are valid.
        frame_mask: (B, G) bool, likewise.

    Returns:
        (A, B) similarities in [−1, 1].
    """
    best_frame, best_caption = _BestMatches.apply(captions, frames, caption_mask, frame_mask)
    over_captions = None if caption_mask is None else caption_mask.unsqueeze(2)
    text_to_video = _softmax_pool(best_frame, logit_scale, over_captions, dim=1)
    video_to_text = _softmax_pool(best_caption, logit_scale, frame_mask, dim=2)
    return 0.5 * (text_to_video + video_to_text)


class _BestMatches(torch.autograd.Function):
    """Maxima of the cosines, over frames and over captions, a few texts at a time.

    Only the maxima and where they were is kept. The cosines' gradient is zero elsewhere, so
    that backward writes it down without computing the cosines again.
    """

    @staticmethod
    def forward(
        ctx: Any,
        captions: Tensor,  # (A, F, D) of length 1
        frames: Tensor,  # (B, G, D) of length 1
        caption_mask: Tensor | None,  # (A, F) bool
        frame_mask: Tensor | None,  # (B, G) bool
    ) -> tuple[Tensor, Tensor]:  # (A, F, B) over frames, (A, B, G) over captions; 0 if padded
        num_texts, num_captions, _ = captions.shape
        num_videos, num_frames, _ = frames.shape
        best_frame = captions.new_empty(num_texts, num_captions, num_videos)
        best_caption = captions.new_empty(num_texts, num_videos, num_frames)
        frame_index = torch.empty_like(best_frame, dtype=torch.int32)
        caption_index = torch.empty_like(best_caption, dtype=torch.int32)
        for chunk in _chunks(captions, frames):
            cosine = linear(captions[chunk].flatten(0, 1), frames.flatten(0, 1))
            cosine = cosine.view(-1, num_captions, num_videos, num_frames)
            if caption_mask is not None:
                cosine.masked_fill_(~caption_mask[chunk, :, None, None], -torch.inf)
            if frame_mask is not None:
                cosine.masked_fill_(~frame_mask, -torch.inf)
            best_frame[chunk], frame_index[chunk] = cosine.max(dim=3)
            best_caption[chunk], caption_index[chunk] = cosine.max(dim=1)
        # Finite where padded, so that a weight of 0 is enough from here on.
        if caption_mask is not None:
            best_frame = best_frame.masked_fill(~caption_mask.unsqueeze(2), 0.0)
        if frame_mask is not None:
            best_caption = best_caption.masked_fill(~frame_mask, 0.0)
        ctx.save_for_backward(captions, frames, frame_index, caption_index)
        return best_frame, best_caption

    @staticmethod
    def backward(
        ctx: Any, grad_best_frame: Tensor, grad_best_caption: Tensor
    ) -> tuple[Tensor, Tensor, None, None]:
        first_derivative_only("the frame-level similarity")
        captions, frames, frame_index, caption_index = ctx.saved_tensors
        grad_captions, grad_frames = torch.empty_like(captions), torch.zeros_like(frames)
        for chunk in _chunks(captions, frames):
            index = frame_index[chunk].long().unsqueeze(3)
            grad = grad_best_frame.new_zeros(*index.shape[:3], frames.shape[1])
            grad.scatter_(3, index, grad_best_frame[chunk].unsqueeze(3))
            index = caption_index[chunk].long().unsqueeze(1)
            # No two entries share a place: adding this way repeats bit for bit on any device.
            grad.scatter_(1, index, grad.gather(1, index) + grad_best_caption[chunk].unsqueeze(1))
            grad = grad.flatten(2).flatten(0, 1)
            grad_captions[chunk] = linear(grad, frames.flatten(0, 1).T).view_as(captions[chunk])
            of_frames = linear(grad.T, captions[chunk].flatten(0, 1).T)
            grad_frames += of_frames.view_as(frames)
        return grad_captions, grad_frames, None, None


def _chunks(captions: Tensor, frames: Tensor) -> list[slice]:
    """Slices of texts whose cosines take no more room than the maxima that are kept."""
    num_texts, num_captions, _ = captions.shape
    num_videos, num_frames, _ = frames.shape
    step = min(
        num_texts // max(num_captions, num_frames),
        CHUNK_ELEMENTS // (num_captions * num_videos * num_frames),
    )
    step = max(1, step)
    return [slice(start, start + step) for start in range(0, num_texts, step)]


def _softmax_pool(
    values: Tensor, logit_scale: Tensor | float, mask: Tensor | None, dim: int
) -> Tensor:
    """Σ x·softmax(logit_scale·x) along ``dim``, where the mask lets values take part."""
    logits = values * logit_scale
    if mask is not None:
        logits = logits.masked_fill(~mask, -torch.inf)
    return (values * logits.softmax(dim=dim)).sum(dim=dim)
