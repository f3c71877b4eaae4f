"""Symmetric InfoNCE, with several texts a video or none, and several videos a text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeGuard

import torch
from torch import Tensor

from garevla.head.pair_weights import ListedPairs, PairWeights
from garevla.utils.validation import as_logit_scale

Targets = Tensor | Sequence[int]
"""(A,) int64, or as many integers."""

SoftTargets = Targets | Sequence[Sequence[int]]
"""Besides: the right videos of each text, or (A, B), how right each video is, dense or sparse."""


def info_nce(
    similarity: Tensor,
    logit_scale: Tensor | float,
    targets: SoftTargets | None = None,
    *,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Symmetric InfoNCE: half the text-to-video plus half the video-to-text cross-entropy.

    Args:
        similarity: (A, B), texts by videos.
        logit_scale: the factor itself (the exponential of CLIP's learnt scale), 0-d or a number.
        targets: the video of each text, (A,) int64 or a sequence of integers. ``None`` means text
            i belongs to video i and needs A = B. A video with several texts takes the mean
            cross-entropy over them; a video with none is left out of the video-to-text mean.

            Where texts have several right videos: a sequence of sequences of integers, or an
            (A, B) tensor, dense or sparse COO, of weights at least 0. The weights of a text's
            videos are made to add up to 1, and so are those of a video's texts.
        label_smoothing: ε in [0, 1), as of :func:`torch.nn.functional.cross_entropy`: the share
            of each target that all videos, and all texts, have in equal parts.

    Returns:
        0-d loss.

    Raises:
        TypeError: logit_scale is no number.
        ValueError: A ≠ B without targets; targets of the wrong shape, dtype or range, or a text
            without any; a logit_scale that is not one positive number, where it is on no GPU;
            label_smoothing out of range.
    """
    logit_scale = as_logit_scale(logit_scale)
    check_label_smoothing(label_smoothing)
    if similarity.dim() != 2:
        raise ValueError(f"similarity must have shape (A, B), got {tuple(similarity.shape)}")
    num_texts, num_videos = similarity.shape
    right = right_pairs(targets, num_texts, num_videos, similarity)
    logits = similarity * logit_scale
    rows, columns = logits.logsumexp(dim=1), logits.logsumexp(dim=0)
    if is_one_each(right) and not label_smoothing:
        target_logits = logits.gather(1, right.unsqueeze(1)).squeeze(1)
        return info_nce_of_logsumexps(rows, columns, target_logits, right)
    weights, known = weights_of(as_pairs(right, num_videos, logits.dtype), label_smoothing)
    return info_nce_of_weighted(rows, columns, known, weights.weigh(logits))


def info_nce_of_logsumexps(
    row_logsumexp: Tensor,
    column_logsumexp: Tensor,
    target_logits: Tensor,
    targets: Tensor,
    label_smoothing: float = 0.0,
    smooth: Tensor | float = 0.0,
) -> Tensor:
    """InfoNCE from the logits' logsumexps (A) and (B) and the right pairs' logits (A).

    Args:
        label_smoothing: ε.
        smooth: the logits' sum with the weights of :func:`smoothing_weights`, 0-d.
    """
    target_logits = (1 - label_smoothing) * target_logits
    text_to_video = (row_logsumexp - target_logits).mean()
    # Not bincount, which makes the host wait for a GPU.
    count = torch.zeros_like(column_logsumexp).scatter_add(
        0, targets, torch.ones_like(target_logits)
    )
    per_video = (column_logsumexp[targets] - target_logits) / count[targets]
    video_to_text = per_video.sum() / (count > 0).sum()
    return 0.5 * (text_to_video + video_to_text - label_smoothing * smooth)


def info_nce_of_weighted(
    text_logsumexp: Tensor, video_logsumexp: Tensor, known: Tensor, aligned: Tensor
) -> Tensor:
    """InfoNCE from the logits' logsumexps (A) and (B), which videos (B) have a text, and the sum of
    the logits with the weights of :func:`weights_of`, 0-d."""
    video_to_text = (video_logsumexp * known).sum() / known.sum()
    return 0.5 * (text_logsumexp.mean() + video_to_text - aligned)


def weights_of(
    right: ListedPairs | Tensor, label_smoothing: float = 0.0
) -> tuple[PairWeights, Tensor]:
    """What the logits count for in twice the InfoNCE, and which videos (B) have a text, 1 or 0.

    Args:
        right: (A, B), how right each pair is.
        label_smoothing: ε.
    """
    per_text, per_video = right.sum(dim=1), right.sum(dim=0)
    known = (per_video > 0).to(per_video.dtype)
    share = 1 - label_smoothing
    every = label_smoothing * _smoothing(known, len(per_text))
    weights = PairWeights(
        right,
        of_row=share / (per_text * len(per_text)),
        of_column=share * known / (per_video.where(known > 0, 1.0) * known.sum()),
        every_row=torch.zeros_like(per_text),
        every_column=every,
    )
    return weights, known


def smoothing_weights(targets: Tensor, num_videos: int, dtype: torch.dtype) -> PairWeights:
    """What label smoothing gives the logits of all pairs of texts with targets (A,), over ε."""
    nothing = torch.zeros(len(targets), dtype=dtype, device=targets.device)
    known = nothing.new_zeros(num_videos).index_fill(0, targets, 1.0)
    zeros = torch.zeros_like(known)
    return PairWeights(None, nothing, zeros, nothing, _smoothing(known, len(targets)))


def _smoothing(known: Tensor, num_texts: int) -> Tensor:
    """(B,) the same for all texts: text to video, and video to text."""
    return (1 / len(known) + known / known.sum()) / num_texts


def as_pairs(
    right: ListedPairs | Tensor, num_videos: int, dtype: torch.dtype
) -> ListedPairs | Tensor:
    """Targets (A,) as (A, B); what is that already is left."""
    if is_one_each(right):
        texts = torch.arange(len(right), device=right.device)
        ones = torch.ones_like(right, dtype=dtype)
        return ListedPairs((len(right), num_videos), texts, right, ones)
    return right


def is_one_each(right: ListedPairs | Tensor) -> TypeGuard[Tensor]:
    """Whether it is targets (A,)."""
    return isinstance(right, Tensor) and right.dim() == 1


def right_pairs(
    targets: SoftTargets | None, num_texts: int, num_videos: int, like: Tensor
) -> ListedPairs | Tensor:
    """Targets (A,) int64 where each text has one video, else (A, B) in a tensor's dtype."""
    if isinstance(targets, Tensor) and targets.dim() == 2:
        return _soft(targets, (num_texts, num_videos), like)
    if isinstance(targets, (list, tuple)) and any(isinstance(x, (list, tuple)) for x in targets):
        return _several(targets, (num_texts, num_videos), like)
    return check_targets(targets, num_texts, num_videos, like.device)  # type: ignore[arg-type]


def _soft(targets: Tensor, shape: tuple[int, int], like: Tensor) -> ListedPairs | Tensor:
    if tuple(targets.shape) != shape:
        raise ValueError(f"targets must have shape (A, B) = {shape}, got {tuple(targets.shape)}")
    if targets.device != like.device:
        raise ValueError(f"targets is on {targets.device}, the features on {like.device}")
    if targets.requires_grad:
        raise ValueError("targets must not require a gradient: they get none. Detach them")
    targets = targets.to(like.dtype)
    values = targets
    right: ListedPairs | Tensor = targets
    if targets.layout != torch.strided:
        listed = targets.to_sparse_coo().coalesce()
        values, (texts, videos) = listed.values(), listed.indices()
        right = ListedPairs(shape, texts, videos, values)
    found = ((values >= 0) & values.isfinite()).all() & (right.sum(dim=1) > 0).all()
    message = "targets must be finite and at least 0, and some video right for each text"
    if found.device.type != "cpu":
        torch._assert_async(found, message)
    elif not found:
        raise ValueError(message)
    return right


def _several(targets: Sequence[Any], shape: tuple[int, int], like: Tensor) -> ListedPairs:
    num_texts, num_videos = shape
    if len(targets) != num_texts:
        raise ValueError(f"targets must be {num_texts}, of one text each, got {len(targets)}")
    pairs = []
    for text, videos in enumerate(targets):
        of_text = [videos] if isinstance(videos, int) else videos
        if not of_text or not all(isinstance(v, int) and 0 <= v < num_videos for v in of_text):
            raise ValueError(
                f"targets[{text}] must be video indices in [0, {num_videos}), one at least, got "
                f"{videos!r}"
            )
        pairs += [(text, video) for video in sorted(set(of_text))]
    texts, videos = torch.tensor(pairs, device=like.device).T
    return ListedPairs(shape, texts, videos, torch.ones_like(texts, dtype=like.dtype))


def check_label_smoothing(label_smoothing: float) -> None:
    """Raise ValueError unless it is in [0, 1)."""
    if not 0.0 <= label_smoothing < 1.0:
        raise ValueError(f"label_smoothing must be in [0, 1), got {label_smoothing}")


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
