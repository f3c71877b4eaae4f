"""Frame alignment forward: similarities from running maxima, tile by tile."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from garevla.kernels.configs import ALIGNMENT
from garevla.kernels.frames.constants import Features, cosine_constants
from garevla.kernels.frames.cosines import (
    OUTSIDE,
    cosines,
    empty_pool,
    load_mask,
    pool,
    tile_of_pairs,
)
from garevla.kernels.launching import launch
from garevla.kernels.operands import as_bytes, as_operand, check_operands


# Sizes of the batch are not specialized: another size is no reason to compile again.
@triton.jit(do_not_specialize=["num_texts", "num_videos"])
def frame_alignment_kernel(
    features,  # Features
    logit_scale,  # () float32
    similarity,  # (A, B) float32, out
    log_mass,  # (A, B) float32, out: logsumexp of scale·maxima over the captions
    pooled,  # (A, B) float32, out: maxima pooled over the captions
    num_texts,
    num_videos,
    TILE: tl.constexpr,  # CosineConstants
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


def alignment_forward(
    captions: Tensor,  # (A, F, D) of length 1
    frames: Tensor,  # (B, G, D) of length 1
    caption_mask: Tensor,  # (A, F) bool
    frame_mask: Tensor,  # (B, G) bool
    logit_scale: Tensor,  # ()
    precision: str,
) -> tuple[Tensor, Tensor, Tensor]:  # (A, B): similarity, and two for the backward pass
    """Similarity, and the captions' logsumexp and pooled maxima."""
    check_alignment(captions, frames, caption_mask, frame_mask, logit_scale, precision)
    (num_texts, num_captions, dim), (num_videos, num_frames, _) = captions.shape, frames.shape
    config = ALIGNMENT[precision]
    constants = cosine_constants(config, num_captions, num_frames, dim, precision)
    similarity, log_mass, pooled = (captions.new_empty(num_texts, num_videos) for _ in range(3))
    launch(
        frame_alignment_kernel,
        (triton.cdiv(num_texts, constants.TEXTS) * triton.cdiv(num_videos, constants.VIDEOS),),
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
        TILE=constants,
        **config.options(),
    )
    return similarity, log_mass, pooled


def check_alignment(
    captions: Tensor,
    frames: Tensor,
    caption_mask: Tensor,
    frame_mask: Tensor,
    logit_scale: Tensor,
    precision: str,
) -> None:
    """Raise TypeError or ValueError unless the operator's arguments fit together."""
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
