"""Symmetric InfoNCE, with several texts a video or none."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from garevla.head.pair_weights import PairWeights
from garevla.utils.validation import as_logit_scale

Targets = Tensor | Sequence[int]
"""(A,) int64, or as many integers."""


def info_nce(
    similarity: Tensor, logit_scale: Tensor | float, targets: Targets | None = None
) -> Tensor:
    """Symmetric InfoNCE: half the text-to-video plus half the video-to-text cross-entropy.

    Args:
        similarity: (A, B), texts by videos.
        logit_scale: the factor itself (the exponential of CLIP's learnt scale), 0-d or a number.
        targets: the video of each text, (A,) int64 or a sequence of integers. ``None`` means text
            i belongs to video i and needs A = B. A video with several texts takes the mean
            cross-entropy over them; a video with none is left out of the video-to-text mean.

    Returns:
        0-d loss.

    Raises:
        TypeError: logit_scale is no number.
        ValueError: A ≠ B without targets; targets of the wrong shape, dtype or range; a
            logit_scale that is not one positive number, where it is on no GPU.
    """
    logit_scale = as_logit_scale(logit_scale)
    if similarity.dim() != 2:
        raise ValueError(f"similarity must have shape (A, B), got {tuple(similarity.shape)}")
    num_texts, num_videos = similarity.shape
    targets = check_targets(targets, num_texts, num_videos, similarity.device)
    logits = similarity * logit_scale
    target_logits = logits.gather(1, targets.unsqueeze(1)).squeeze(1)
    return info_nce_of_logsumexps(
        logits.logsumexp(dim=1), logits.logsumexp(dim=0), target_logits, targets
    )


def info_nce_of_logsumexps(
    row_logsumexp: Tensor, column_logsumexp: Tensor, target_logits: Tensor, targets: Tensor
) -> Tensor:
    """InfoNCE from the logits' logsumexps (A) and (B) and the right pairs' logits (A)."""
    text_to_video = (row_logsumexp - target_logits).mean()
    # Not bincount, which makes the host wait for a GPU.
    count = torch.zeros_like(column_logsumexp).scatter_add(
        0, targets, torch.ones_like(target_logits)
    )
    per_video = (column_logsumexp[targets] - target_logits) / count[targets]
    video_to_text = per_video.sum() / (count > 0).sum()
    return 0.5 * (text_to_video + video_to_text)


def weights_of_targets(targets: Tensor, num_videos: int, dtype: torch.dtype) -> PairWeights:
    """What the right pairs' logits count for in twice the InfoNCE of targets (A,)."""
    ones = torch.ones_like(targets, dtype=dtype)
    count = ones.new_zeros(num_videos).scatter_add(0, targets, ones)
    values = 1 / len(targets) + 1 / (count[targets] * (count > 0).sum())
    texts = torch.arange(len(targets), device=targets.device)
    return PairWeights((len(targets), num_videos), texts, targets, values)


def info_nce_of_weighted(
    text_logsumexp: Tensor, video_logsumexp: Tensor, weights: PairWeights, aligned: Tensor
) -> Tensor:
    """InfoNCE from the logits' logsumexps (A) and (B), the weights (A, B) of the right pairs and
    their weighted sum of logits, 0-d."""
    known = torch.zeros_like(video_logsumexp).index_fill(0, weights.columns, 1.0)
    video_to_text = (video_logsumexp * known).sum() / known.sum()
    return 0.5 * (text_logsumexp.mean() + video_to_text - aligned)


def check_targets(
    targets: Targets | None, num_texts: int, num_videos: int, device: torch.device
) -> Tensor:
    """Targets (A,) int64 of A texts and B videos, the diagonal where none are given."""
    if num_texts == 0 or num_videos == 0:
        raise ValueError(
            f"similarity must have shape (A, B), not empty, got {(num_texts, num_videos)}"
        )
    if targets is None:
        if num_texts != num_videos:
            raise ValueError(
                f"{num_texts} texts against {num_videos} videos: give targets (A,), the video "
                "index of each text"
            )
        return torch.arange(num_texts, device=device)
    if not isinstance(targets, Tensor):
        targets = _as_tensor(targets, device)
    if targets.shape != (num_texts,) or targets.dtype != torch.int64:
        raise ValueError(
            f"targets must be int64 of shape (A,) = ({num_texts},), "
            f"got {targets.dtype} of shape {tuple(targets.shape)}"
        )
    if targets.device != device:
        raise ValueError(f"targets is on {targets.device}, the features on {device}")
    if targets.device.type == "cpu" and not torch.compiler.is_compiling():
        low, high = int(targets.min()), int(targets.max())
        if low < 0 or high >= num_videos:
            raise ValueError(
                f"targets must be video indices in [0, {num_videos}), got {low}..{high}"
            )
    return targets


def _as_tensor(targets: Sequence[int], device: torch.device) -> Tensor:
    try:
        return torch.tensor(targets, device=device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            "targets must be an int64 tensor (A,) or a sequence of integers, the video index of "
            f"each text, got {type(targets).__name__}"
        ) from error
