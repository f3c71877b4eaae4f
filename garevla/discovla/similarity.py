"""DiscoVLA's two similarities of videos: by the mean frame, and frame by frame (CVPR 2025)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from garevla.head.similarity import full_precision
from garevla.ops.backends import resolve_backend
from garevla.ops.precision import current_precision
from garevla.utils.validation import as_frame_mask, check_features, check_frame_features

# Elements of the largest tensor of one chunk; small enough to stay near a cache.
CHUNK_ELEMENTS = 2**22


def mean_frame_similarity(
    text_features: Tensor, frame_features: Tensor, frame_mask: Tensor | None = None
) -> Tensor:
    """DiscoVLA's similarity: cosine of a text and the mean of a video's L2-normalised frames.

    Args:
        text_features: (A, D) floating point, not normalised.
        frame_features: (B, F, D) floating point, not normalised.
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
        videos = _normalise(frame_features, mask).sum(dim=1)
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

    S is never kept. In PyTorch it is computed a few texts at a time and A·B·(F + G) numbers are
    kept; by Triton kernels in registers, and A·B numbers are.

    Args:
        pseudo_caption_features: (A, F, D) floating point, not normalised.
        frame_features: (B, G, D) floating point, not normalised.
        logit_scale: the factor itself, 0-d or a number.
        caption_mask: (A, F), 1 or True for a valid caption; ``None`` means all are.
        frame_mask: (B, G), likewise. What is padded takes no part, whatever it holds.
        backend: ``"auto"`` or a name from :func:`garevla.backend_status`; see
            :func:`garevla.use_backend`. ``"triton"`` has kernels for it; all others, and float64
            features where the choice is not made here, take plain PyTorch.

    Returns:
        (A, B) similarities in [−1, 1], in float32 at least, also under autocast.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape, device or value; a video
            with no valid caption or frame; float64 features with ``backend="triton"``.
        BackendUnavailableError: the requested backend cannot run here.
    """
    _check_captions(pseudo_caption_features, caption_mask)
    check_frame_features(frame_features, pseudo_caption_features.shape[2])
    if caption_mask is not None:
        caption_mask = as_frame_mask(caption_mask, pseudo_caption_features)
    if frame_mask is not None:
        frame_mask = as_frame_mask(frame_mask, frame_features)
    captions, frames = _as_one_dtype(pseudo_caption_features, frame_features)
    in_triton = _runs_in_triton(backend, frames)
    with full_precision(frames):
        captions, frames = _normalise(captions, caption_mask), _normalise(frames, frame_mask)
        if in_triton:
            from garevla.kernels.frames.alignment import frame_alignment

            return frame_alignment(
                captions, frames, logit_scale, caption_mask, frame_mask, current_precision()
            )
        best_frame, best_caption = _BestMatches.apply(captions, frames, caption_mask, frame_mask)
        over_captions = None if caption_mask is None else caption_mask.unsqueeze(2)
        text_to_video = _softmax_pool(best_frame, logit_scale, over_captions, dim=1)
        video_to_text = _softmax_pool(best_caption, logit_scale, frame_mask, dim=2)
        return 0.5 * (text_to_video + video_to_text)


def _runs_in_triton(backend: str, features: Tensor) -> bool:
    """Whether the kernels run, of which there are none for float64.

    Raises:
        TypeError: float64 features, with the kernels asked for by name.
    """
    if resolve_backend(backend, features.device).name != "triton":
        return False
    if features.dtype != torch.float64:
        return True
    if backend == "triton":
        raise TypeError(
            "the triton kernels compute in float32 and the features are torch.float64: use "
            "backend='auto' or 'eager'"
        )
    return False


class _BestMatches(torch.autograd.Function):
    """Maxima of the cosines, over frames and over captions, a few texts at a time.

    Only the maxima and where they were is kept. The cosines' gradient is zero elsewhere, so
    that backward writes it down without computing the cosines again.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx,
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
            cosine = captions[chunk].flatten(0, 1) @ frames.flatten(0, 1).T
            cosine = cosine.view(-1, num_captions, num_videos, num_frames)
            if caption_mask is not None:
                cosine.masked_fill_(~caption_mask[chunk, :, None, None], -torch.inf)
            if frame_mask is not None:
                cosine.masked_fill_(~frame_mask, -torch.inf)
            best_frame[chunk], frame_index[chunk] = cosine.max(dim=3)
            best_caption[chunk], caption_index[chunk] = cosine.max(dim=1)
        # Finite where padded, so that a weight of 0 is enough from here on.
        if caption_mask is not None:
            best_frame.masked_fill_(~caption_mask.unsqueeze(2), 0.0)
        if frame_mask is not None:
            best_caption.masked_fill_(~frame_mask, 0.0)
        ctx.save_for_backward(captions, frames, frame_index, caption_index)
        return best_frame, best_caption

    @staticmethod
    @once_differentiable
    def backward(
        ctx: FunctionCtx, grad_best_frame: Tensor, grad_best_caption: Tensor
    ) -> tuple[Tensor, Tensor, None, None]:
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
            grad_captions[chunk] = (grad @ frames.flatten(0, 1)).view_as(captions[chunk])
            grad_frames += (grad.T @ captions[chunk].flatten(0, 1)).view_as(frames)
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


def _normalise(features: Tensor, mask: Tensor | None) -> Tensor:
    """Features over their length; zeros at padding, which may hold NaN."""
    if mask is not None:
        features = torch.where(mask.unsqueeze(-1), features, 0.0)
    return F.normalize(features, dim=-1)


def _as_one_dtype(*features: Tensor) -> tuple[Tensor, ...]:
    dtype = torch.float32
    for tensor in features:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return tuple(tensor.to(dtype) for tensor in features)


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
