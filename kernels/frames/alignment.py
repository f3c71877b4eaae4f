"""DiscoVLA's frame-level similarity without the A·B·F·G cosines, forward and backward.

With S the cosines of captions t of text a and frames v of video b: max_v S for each caption, max_t
S for each frame, each pooled by Σ x·softmax(scale·x). Captions are visited a few per text at a
time, with running maxima for the frames and a running softmax for the captions, so that a tile of S
lives in registers only.

Forward is one matrix product. Backward (frame_backward.py) computes the cosines once more, this
time writing down for each caption and frame its gradient and where its maximum was,
A·B·(F + G)·5 bytes for a bounded number of texts at a time; two more products multiply the cosines'
gradient, spread out in registers from that, with frames and with captions. Four products of
A·B·F·G·D multiply-adds in all, and A·B numbers kept besides the inputs. Equal cosines: the first is
the maximum, as in PyTorch.

Default configurations compiled for sm_90 at D = 512, F = 12 (shared memory, registers a thread; no
spills):

| kernel | bfloat16 | float32 |
|---|---|---|
| frame_alignment | 60 KB, 162 | 4 KB, 96 |
| frame_alignment_maxima | 40 KB, 158 | 4 KB, 91 |
| frame_alignment_captions | 108 KB, 155 | 21 KB, 52 |
| frame_alignment_frames | 108 KB, 152 | 21 KB, 48 |
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from garevla.kernels.frames.backward import align_backward
from garevla.kernels.frames.cosines import (
    OUTSIDE,
    cosines,
    empty_pool,
    load_mask,
    pool,
    tile_of_pairs,
)
from garevla.kernels.frames.tiles import SIMILARITY_CONFIGS, Features, cosine_tile
from garevla.kernels.launching import launch
from garevla.kernels.operands import as_bytes, as_operand, check_operands


def frame_level_similarity(
    captions: Tensor,
    frames: Tensor,
    logit_scale: Tensor | float,
    caption_mask: Tensor | None = None,
    frame_mask: Tensor | None = None,
    precision: str = "float32",
) -> Tensor:
    """As :func:`garevla.discovla.similarity.frame_level_similarity`, of features of length 1.

    Bit for bit repeatable; O(A·B) memory beside features.

    Args:
        captions: (A, F, D) float32 of length 1, finite where padded.
        frames: (B, G, D), likewise.
        logit_scale: the factor itself, 0-d or a number.
        caption_mask: (A, F) bool; ``None`` means all are valid.
        frame_mask: (B, G), likewise.
        precision: of the matrix products: float32, tf32x3, tf32 or bfloat16.

    Returns:
        (A, B) float32.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape, device or value.
    """
    caption_mask, frame_mask = (
        torch.ones(features.shape[:2], dtype=torch.bool, device=features.device)
        if mask is None
        else mask
        for features, mask in ((captions, caption_mask), (frames, frame_mask))
    )
    scale = torch.as_tensor(logit_scale, dtype=torch.float32, device=frames.device)
    return torch.ops.garevla_triton.frame_alignment(
        captions, frames, caption_mask, frame_mask, scale, precision
    )[0]


# Sizes of the batch are not specialised: another size is no reason to compile again.
@triton.jit(do_not_specialize=["num_texts", "num_videos"])
def frame_alignment(
    features,  # Features
    logit_scale,  # () float32
    similarity,  # (A, B) float32, out
    log_mass,  # (A, B) float32, out: logsumexp of scale·maxima over the captions
    pooled,  # (A, B) float32, out: maxima pooled over the captions
    num_texts,
    num_videos,
    TILE: tl.constexpr,
):
    """Similarities of a tile of texts and videos. Program (tile of texts and videos).

    A·F·B·G'·D multiply-adds, where G' is G up to a power of two (captions are not padded so: F = 12
    goes as 3 × 4); 2·(A·F + B·G)·D bytes read from memory (bfloat16) and 12·A·B written. A = B =
    1024, F = G = 12, D = 512 on an H200: 0.26 ms of tensor cores (790 TFLOP/s), 0.01 ms of memory
    (4.3 TB/s). A 128×64 tile reads 384·D bytes from L2 for 16,384·D operations, 43 a byte: L2 is
    the bound unless it delivers 18 TB/s.
    """
    text, video = tile_of_pairs(num_texts, num_videos, TILE)
    texts, videos = text + tl.arange(0, TILE.TEXTS), video + tl.arange(0, TILE.VIDEOS)
    scale = tl.load(logit_scale)
    sign = tl.where(scale < 0, -1.0, 1.0)
    frame_slots = tl.arange(0, TILE.FRAMES)
    frame_valid = load_mask(features.frame_mask, videos, num_videos, frame_slots, TILE.G)
    best_caption = tl.full([TILE.TEXTS, TILE.VIDEOS, TILE.FRAMES], OUTSIDE, tl.float32)
    reference, mass, moment = empty_pool(sign, TILE)
    for caption in range(0, TILE.F, TILE.CAPTIONS):
        cosine = cosines(features, text, caption, video, num_texts, num_videos, TILE)
        slots = caption + tl.arange(0, TILE.CAPTIONS)
        valid = load_mask(features.caption_mask, texts, num_texts, slots, TILE.F)
        best_frame = tl.max(tl.where(frame_valid[None, None, :, :], cosine, OUTSIDE), axis=3)
        best = tl.max(tl.where(valid[:, :, None, None], cosine, OUTSIDE), axis=1)
        best_caption = tl.maximum(best_caption, best)
        reference, mass, moment = pool(
            best_frame, valid[:, :, None], scale, sign, reference, mass, moment, 1
        )
    text_to_video = reference + moment / mass
    at = texts.to(tl.int64)[:, None] * num_videos + videos[None, :]
    inside = (texts < num_texts)[:, None] & (videos < num_videos)[None, :]
    tl.store(log_mass + at, scale * reference + tl.log(mass), mask=inside)
    tl.store(pooled + at, text_to_video, mask=inside)
    reference, mass, moment = empty_pool(sign, TILE)
    reference, mass, moment = pool(
        best_caption, frame_valid[None, :, :], scale, sign, reference, mass, moment, 2
    )
    video_to_text = reference + moment / mass
    tl.store(similarity + at, 0.5 * (text_to_video + video_to_text), mask=inside)


def align(
    captions: Tensor,  # (A, F, D) of length 1
    frames: Tensor,  # (B, G, D) of length 1
    caption_mask: Tensor,  # (A, F) bool
    frame_mask: Tensor,  # (B, G) bool
    logit_scale: Tensor,  # ()
    precision: str,
) -> tuple[Tensor, Tensor, Tensor]:  # (A, B): similarity, and two for the backward pass
    """What the operator does: similarity, and the captions' logsumexp and pooled maxima."""
    _check(captions, frames, caption_mask, frame_mask, logit_scale, precision)
    (num_texts, num_captions, dim), (num_videos, num_frames, _) = captions.shape, frames.shape
    config = SIMILARITY_CONFIGS[precision]
    tile = cosine_tile(config, num_captions, num_frames, dim, precision)
    similarity, log_mass, pooled = (captions.new_empty(num_texts, num_videos) for _ in range(3))
    launch(
        frame_alignment,
        (triton.cdiv(num_texts, tile.TEXTS) * triton.cdiv(num_videos, tile.VIDEOS),),
        features=Features(
            as_operand(captions, precision),
            as_operand(frames, precision),
            as_bytes(caption_mask),
            as_bytes(frame_mask),
        ),
        logit_scale=logit_scale,
        similarity=similarity,
        log_mass=log_mass,
        pooled=pooled,
        num_texts=num_texts,
        num_videos=num_videos,
        TILE=tile,
        **config.options(),
    )
    return similarity, log_mass, pooled


_frame_alignment = torch.library.custom_op(
    "garevla_triton::frame_alignment", align, mutates_args=()
)
_frame_alignment_backward = torch.library.custom_op(
    "garevla_triton::frame_alignment_backward", align_backward, mutates_args=()
)


def _check(
    captions: Tensor,
    frames: Tensor,
    caption_mask: Tensor,
    frame_mask: Tensor,
    logit_scale: Tensor,
    precision: str,
) -> None:
    check_operands(precision, captions=captions, frames=frames, logit_scale=logit_scale)
    if captions.dim() != 3 or frames.dim() != 3 or captions.shape[2] != frames.shape[2]:
        raise ValueError(
            "captions and frames must have shapes (A, F, D) and (B, G, D), got "
            f"{tuple(captions.shape)} and {tuple(frames.shape)}"
        )
    if 0 in captions.shape or 0 in frames.shape:
        raise ValueError(
            f"captions or frames are empty: {tuple(captions.shape)}, {tuple(frames.shape)}"
        )
    for name, mask, shape in (
        ("caption_mask", caption_mask, captions.shape[:2]),
        ("frame_mask", frame_mask, frames.shape[:2]),
    ):
        if mask.dtype != torch.bool or mask.shape != shape:
            raise ValueError(
                f"{name} must be bool of shape {tuple(shape)}, got {mask.dtype} of "
                f"{tuple(mask.shape)}"
            )
    if logit_scale.dim() != 0:
        raise ValueError(f"logit_scale must be 0-d, got {tuple(logit_scale.shape)}")


@_frame_alignment.register_fake
def _(
    captions: Tensor,
    frames: Tensor,
    caption_mask: Tensor,
    frame_mask: Tensor,
    logit_scale: Tensor,
    precision: str,
) -> tuple[Tensor, Tensor, Tensor]:
    _check(captions, frames, caption_mask, frame_mask, logit_scale, precision)
    shape = captions.shape[0], frames.shape[0]
    return captions.new_empty(shape), captions.new_empty(shape), captions.new_empty(shape)


@_frame_alignment_backward.register_fake
def _(captions: Tensor, frames: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor]:
    # Contiguous, whatever the inputs are.
    shapes = captions.shape, frames.shape, ()
    gradients = [captions.new_empty(shape) for shape in shapes]
    return gradients[0], gradients[1], gradients[2]


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.precision = inputs
    _, log_mass, pooled = output
    ctx.mark_non_differentiable(log_mass, pooled)
    ctx.save_for_backward(*tensors, log_mass, pooled)


def _backward(ctx: Any, grad_similarity: Tensor, *_: Any) -> tuple[Any, ...]:
    if torch.is_grad_enabled():
        raise RuntimeError(
            "the triton kernels have no second derivatives (create_graph=True): use backend='eager'"
        )
    *tensors, log_mass, pooled = ctx.saved_tensors
    captions, frames, scale = torch.ops.garevla_triton.frame_alignment_backward(
        *tensors, ctx.precision, log_mass, pooled, grad_similarity
    )
    return captions, frames, None, None, scale, None


_frame_alignment.register_autograd(_backward, setup_context=_save)
