"""DiscoVLA (CVPR 2025, arXiv 2506.08887) as published: its similarities and the distillation.

Shapes: A texts with F pseudo captions each, B videos of G frames, D features. All A·B·F·G cosines
are materialized. One repair: padded captions and frames take no part. Works in any floating dtype;
arguments are not checked.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def mean_frame_similarity(text_features: Tensor, frame_features: Tensor, mask: Tensor) -> Tensor:
    """Video level: cosine of a text and the mean of a video's L2-normalized frames, (A, B).

    Args:
        text_features: (A, D).
        frame_features: (B, G, D).
        mask: (B, G) bool.
    """
    frames = F.normalize(frame_features, dim=-1) * mask.unsqueeze(-1)
    videos = frames.sum(1) / mask.sum(1, keepdim=True)
    return F.cosine_similarity(text_features.unsqueeze(1), videos, dim=-1)


def frame_level_similarity(
    captions: Tensor,
    frames: Tensor,
    logit_scale: Tensor | float,
    caption_mask: Tensor | None = None,
    frame_mask: Tensor | None = None,
) -> Tensor:
    """Pseudo image-level alignment, (A, B): each caption's best frame, each frame's best caption.

    Both sets of best cosines x are pooled by Σ x·softmax(logit_scale·x), and averaged.

    Args:
        captions: (A, F, D), not normalized.
        frames: (B, G, D), not normalized.
        caption_mask, frame_mask: (A, F) and (B, G), True for what is valid; None: all is.
    """
    captions, frames = F.normalize(captions, dim=-1), F.normalize(frames, dim=-1)
    cosine = torch.einsum("afd,bgd->abfg", captions, frames)
    valid_captions = torch.ones_like(cosine, dtype=torch.bool)
    valid_frames = valid_captions
    if caption_mask is not None:
        valid_captions = caption_mask.to(torch.bool)[:, None, :, None].expand_as(cosine)
    if frame_mask is not None:
        valid_frames = frame_mask.to(torch.bool)[None, :, None, :].expand_as(cosine)
    best_frame = cosine.masked_fill(~valid_frames, -torch.inf).amax(3)
    best_caption = cosine.masked_fill(~valid_captions, -torch.inf).amax(2)
    of_captions = _pooled(best_frame, logit_scale, valid_captions[..., 0])
    of_frames = _pooled(best_caption, logit_scale, valid_frames[:, :, 0])
    return (of_captions + of_frames) / 2


def _pooled(best: Tensor, logit_scale: Tensor | float, valid: Tensor) -> Tensor:
    weights = (best * logit_scale).masked_fill(~valid, -torch.inf).softmax(-1)
    return (best * weights).sum(-1)


def divergences(
    teacher: Tensor, student: Tensor, logit_scale: Tensor | float
) -> tuple[Tensor, Tensor]:
    """KL(teacher ‖ student) of each row, (A,), and of each column, (B,), of two similarities.

    Probabilities are the softmax of ``logit_scale`` times the (A, B) similarity.
    """

    def of_rows(p_logits: Tensor, q_logits: Tensor) -> Tensor:
        p, q = p_logits.softmax(1), q_logits.softmax(1)
        return (p * (p / q).log()).sum(1)

    p_logits, q_logits = teacher * logit_scale, student * logit_scale
    return of_rows(p_logits, q_logits), of_rows(p_logits.T, q_logits.T)


def alignment_distillation(
    frame_similarity: Tensor, video_similarity: Tensor, logit_scale: Tensor | float
) -> Tensor:
    """Image- to video-level alignment distillation, 0-d, with the published factor 100 / (A·B).

    The teacher, ``frame_similarity`` (A, B), is not detached.
    """
    rows, columns = divergences(frame_similarity, video_similarity, logit_scale)
    return 100 / frame_similarity.numel() * (rows.sum() + columns.sum()) / 2
