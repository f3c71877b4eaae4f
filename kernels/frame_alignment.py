"""DiscoVLA's frame-level similarity without the A·B·F·G cosines, forward and backward.

With S the cosines of captions t of text a and frames v of video b: max_v S for each caption, max_t
S for each frame, each pooled by Σ x·softmax(scale·x). Captions are visited a few per text at a
time, with running maxima for the frames and a running softmax for the captions, so that a tile of S
lives in registers only.

Forward is one matrix product. Backward computes the cosines once more, this time writing down for
each caption and frame its gradient and where its maximum was, A·B·(F + G)·5 bytes for a bounded
number of texts at a time; two more products multiply the cosines' gradient, spread out in registers
from that, with frames and with captions. Four products of A·B·F·G·D multiply-adds in all, and A·B
numbers kept besides the inputs. Equal cosines: the first is the maximum, as in PyTorch.

Default configurations compiled for sm_90 at D = 512, F = 12 (shared memory, registers a thread; no
spills):

| kernel | bfloat16 | float32 |
|---|---|---|
| frame_alignment | 48 KB, 172 | 4 KB, 96 |
| frame_alignment_maxima | 48 KB, 191 | 4 KB, 92 |
| frame_alignment_captions | 108 KB, 155 | 21 KB, 74 |
| frame_alignment_frames | 108 KB, 152 | 21 KB, 79 |
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from garevla.kernels.operands import INPUT_PRECISION, as_operand, check_operands

# Maxima of captions and frames, of a chunk of texts, that exist in the backward pass.
CHUNK_ELEMENTS = 2**26
_OUTSIDE = tl.constexpr(float("-inf"))
_BELOW = tl.constexpr(-4.0)  # every cosine, yet finite


class Tiles(NamedTuple):
    """A launch configuration."""

    rows: int  # captions of a tile, over all its texts
    columns: int  # frames of a tile, over all its videos
    reduction: int  # features multiplied at a time
    output: int  # features of a gradient per program
    warps: int
    stages: int


SIMILARITY_TILES = {
    "bfloat16": Tiles(128, 64, 64, 0, 8, 2),
    "tf32": Tiles(64, 64, 32, 0, 4, 3),
    "tf32x3": Tiles(64, 64, 32, 0, 8, 2),
    "float32": Tiles(32, 32, 16, 0, 4, 2),
}
MAXIMA_TILES = SIMILARITY_TILES | {
    "bfloat16": Tiles(64, 64, 64, 0, 8, 3),
    "float32": Tiles(32, 32, 16, 0, 8, 2),
}
PRODUCT_TILES = {
    "bfloat16": Tiles(64, 64, 0, 256, 8, 2),
    "tf32": Tiles(64, 32, 0, 128, 8, 2),
    "tf32x3": Tiles(64, 32, 0, 64, 8, 2),
    "float32": Tiles(32, 32, 0, 64, 8, 2),
}


def frame_level_similarity(
    pseudo_caption_features: Tensor,
    frame_features: Tensor,
    logit_scale: Tensor | float,
    caption_mask: Tensor | None = None,
    frame_mask: Tensor | None = None,
    precision: str = "float32",
) -> Tensor:
    """As :func:`garevla.frame_similarity.frame_level_similarity`; arguments are not checked again.

    Bit for bit repeatable; O(A·B) memory beside features.

    Args:
        pseudo_caption_features: (A, F, D) floating point, not normalised.
        frame_features: (B, G, D) floating point, not normalised.
        logit_scale: the factor itself, 0-d or a number.
        caption_mask: (A, F) bool; ``None`` means all are valid.
        frame_mask: (B, G), likewise.
        precision: of the matrix products: float32, tf32x3, tf32 or bfloat16.

    Returns:
        (A, B) float32.

    Raises:
        TypeError: float64 features.
        ValueError: shapes or devices that do not fit.
    """
    captions, frames = pseudo_caption_features, frame_features
    for features in (captions, frames):
        if features.dtype == torch.float64:
            raise TypeError("the triton kernels know no float64: use backend='eager'")
    with _full_precision(frames):
        captions, caption_mask = _normalise(captions.float(), caption_mask)
        frames, frame_mask = _normalise(frames.float(), frame_mask)
        scale = torch.as_tensor(logit_scale, dtype=torch.float32, device=frames.device)
        return torch.ops.garevla_triton.frame_alignment(
            captions, frames, caption_mask, frame_mask, scale, precision
        )[0]


def _full_precision(like: Tensor) -> AbstractContextManager[None]:
    return torch.autocast(device_type=like.device.type, enabled=False)


def _normalise(features: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Features over their length, zeros at padding, which may hold NaN; and the mask as bool."""
    if mask is None:
        mask = torch.ones(features.shape[:2], dtype=torch.bool, device=features.device)
    else:
        mask = mask != 0
        features = torch.where(mask.unsqueeze(-1), features, 0.0)
    return torch.nn.functional.normalize(features, dim=-1), mask


@triton.jit
def _load_matrix(
    matrix,  # (num_rows, DIM)
    rows,  # (R,)
    inside,  # (R,) which of the rows exist
    columns,  # (C,)
    DIM: tl.constexpr,
):
    """Tile (R, C), zero outside of the matrix."""
    at = rows.to(tl.int64)[:, None] * DIM + columns[None, :]
    return tl.load(matrix + at, mask=inside[:, None] & (columns < DIM)[None, :], other=0.0)


@triton.jit
def _cosines(
    captions,  # (A, F, DIM) operands of length 1
    frames,  # (B, G, DIM) operands of length 1
    text,  # first of the tile
    caption,  # first of each text
    video,  # first of the tile
    num_texts,
    num_videos,
    F: tl.constexpr,
    G: tl.constexpr,
    DIM: tl.constexpr,
    TEXTS: tl.constexpr,
    CAPTIONS: tl.constexpr,
    VIDEOS: tl.constexpr,
    FRAMES: tl.constexpr,
    REDUCTION: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Cosines (TEXTS, CAPTIONS, VIDEOS, FRAMES) of a tile; FRAMES ≥ G."""
    row = tl.arange(0, TEXTS * CAPTIONS)
    column = tl.arange(0, VIDEOS * FRAMES)
    row_text, row_caption = text + row // CAPTIONS, caption + row % CAPTIONS
    column_video, column_frame = video + column // FRAMES, column % FRAMES
    row_inside = (row_text < num_texts) & (row_caption < F)
    column_inside = (column_video < num_videos) & (column_frame < G)
    cosine = tl.zeros([TEXTS * CAPTIONS, VIDEOS * FRAMES], tl.float32)
    for start in range(0, DIM, REDUCTION):
        features = start + tl.arange(0, REDUCTION)
        left = _load_matrix(captions, row_text * F + row_caption, row_inside, features, DIM)
        right = _load_matrix(frames, column_video * G + column_frame, column_inside, features, DIM)
        cosine = tl.dot(left, tl.trans(right), cosine, input_precision=PRECISION)
    return tl.reshape(cosine, (TEXTS, CAPTIONS, VIDEOS, FRAMES))


@triton.jit
def _load_mask(
    mask,  # (items, SLOTS) uint8
    items,  # (N,)
    num_items,
    slots,  # (M,)
    SLOTS: tl.constexpr,
):
    """Tile (N, M) of bools. All slots of items that do not exist are valid: no sum is empty."""
    exists = (items < num_items)[:, None]
    at = items.to(tl.int64)[:, None] * SLOTS + slots[None, :]
    valid = tl.load(mask + at, mask=exists & (slots < SLOTS)[None, :], other=0) != 0
    return valid | (items >= num_items)[:, None]


@triton.jit
def _pool(
    best,  # (…, N) maxima
    valid,  # (…, N), broadcastable
    scale,
    sign,  # of the scale
    reference,  # (…), best or worst maximum so far
    mass,  # (…), Σ exp(scale (x − reference))
    moment,  # (…), Σ (x − reference) exp(scale (x − reference))
    AXIS: tl.constexpr,
):
    """Take more maxima into the running softmax.

    A maximum of −inf is one of NaNs, and makes the result NaN.
    """
    top = tl.max(tl.where(valid, best * sign, _BELOW), axis=AXIS)
    top = tl.maximum(reference * sign, top) * sign
    shift = reference - top
    decay = tl.exp(scale * shift)
    offset = tl.where(valid, best - tl.expand_dims(top, AXIS), 0.0)
    weight = tl.where(valid, tl.exp(scale * offset), 0.0)
    moment = decay * (moment + shift * mass) + tl.sum(weight * offset, axis=AXIS)
    mass = decay * mass + tl.sum(weight, axis=AXIS)
    return top, mass, moment


@triton.jit
def frame_alignment(
    captions,  # (A, F, DIM) operands of length 1
    frames,  # (B, G, DIM) operands of length 1
    caption_mask,  # (A, F) uint8
    frame_mask,  # (B, G) uint8
    logit_scale,  # () float32
    similarity,  # (A, B) float32, out
    log_mass,  # (A, B) float32, out: logsumexp of scale·maxima over the captions
    pooled,  # (A, B) float32, out: maxima pooled over the captions
    num_texts,
    num_videos,
    F: tl.constexpr,
    G: tl.constexpr,
    DIM: tl.constexpr,
    TEXTS: tl.constexpr,
    CAPTIONS: tl.constexpr,
    VIDEOS: tl.constexpr,
    FRAMES: tl.constexpr,
    REDUCTION: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Similarities of a tile of texts and videos. Program (tile of texts, tile of videos).

    A·F·B·G'·D multiply-adds, where G' is G up to a power of two (captions are not padded so: F = 12
    goes as 3 × 4). Bytes from memory (A·F + B·G)·D·2 (bfloat16) and 12·A·B written; from L2 a
    128×64 tile reads 384·D for 16,384·D operations, 43 a byte. Bound by tensor cores and L2.
    """
    text = tl.program_id(0) * TEXTS
    video = tl.program_id(1) * VIDEOS
    texts, videos = text + tl.arange(0, TEXTS), video + tl.arange(0, VIDEOS)
    slots = tl.arange(0, CAPTIONS)
    scale = tl.load(logit_scale)
    sign = tl.where(scale < 0, -1.0, 1.0)
    frame_valid = _load_mask(frame_mask, videos, num_videos, tl.arange(0, FRAMES), G)
    best_caption = tl.full([TEXTS, VIDEOS, FRAMES], _OUTSIDE, tl.float32)
    reference = tl.full([TEXTS, VIDEOS], _BELOW, tl.float32) * sign
    mass = tl.zeros([TEXTS, VIDEOS], tl.float32)
    moment = tl.zeros([TEXTS, VIDEOS], tl.float32)
    for caption in range(0, F, CAPTIONS):
        cosine = _cosines(
            captions,
            frames,
            text,
            caption,
            video,
            num_texts,
            num_videos,
            F,
            G,
            DIM,
            TEXTS,
            CAPTIONS,
            VIDEOS,
            FRAMES,
            REDUCTION,
            PRECISION,
        )
        valid = _load_mask(caption_mask, texts, num_texts, caption + slots, F)
        best_frame = tl.max(tl.where(frame_valid[None, None, :, :], cosine, _OUTSIDE), axis=3)
        best = tl.max(tl.where(valid[:, :, None, None], cosine, _OUTSIDE), axis=1)
        best_caption = tl.maximum(best_caption, best)
        reference, mass, moment = _pool(
            best_frame, valid[:, :, None], scale, sign, reference, mass, moment, 1
        )
    text_to_video = reference + moment / mass
    at = texts.to(tl.int64)[:, None] * num_videos + videos[None, :]
    inside = (texts < num_texts)[:, None] & (videos < num_videos)[None, :]
    tl.store(log_mass + at, scale * reference + tl.log(mass), mask=inside)
    tl.store(pooled + at, text_to_video, mask=inside)
    reference = tl.full([TEXTS, VIDEOS], _BELOW, tl.float32) * sign
    mass = tl.zeros([TEXTS, VIDEOS], tl.float32)
    reference, mass, moment = _pool(
        best_caption, frame_valid[None, :, :], scale, sign, reference, mass, mass, 2
    )
    video_to_text = reference + moment / mass
    tl.store(similarity + at, 0.5 * (text_to_video + video_to_text), mask=inside)


@triton.jit
def frame_alignment_maxima(
    captions,  # (A, F, DIM) operands of length 1
    frames,  # (B, G, DIM) operands of length 1
    caption_mask,  # (A, F) uint8
    frame_mask,  # (B, G) uint8
    logit_scale,  # () float32
    log_mass,  # (A, B) float32, as frame_alignment left it
    pooled,  # (A, B) float32, likewise
    grad_similarity,  # (A, B) float32
    frame_gradient,  # (A, F, B) float32, out: gradient of each caption's maximum
    frame_index,  # (A, F, B) int, out: its frame
    caption_gradient,  # (A, B, G) float32, out: gradient of each frame's maximum
    caption_index,  # (A, B, G) int, out: its caption
    scale_gradient,  # (tiles of texts, tiles of videos) float32, out
    num_texts,
    num_videos,
    F: tl.constexpr,
    G: tl.constexpr,
    DIM: tl.constexpr,
    TEXTS: tl.constexpr,
    CAPTIONS: tl.constexpr,
    VIDEOS: tl.constexpr,
    FRAMES: tl.constexpr,
    REDUCTION: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Where the maxima of a tile are, and their gradients. Program (tile of texts, tile of videos).

    The product of frame_alignment again; 5·A·B·(F + G) bytes written. Bound by arithmetic from
    F·G·D/(F + G) ≈ 500 on (F = G = 12: D ≥ 80), else by writing.
    """
    text = tl.program_id(0) * TEXTS
    video = tl.program_id(1) * VIDEOS
    texts, videos = text + tl.arange(0, TEXTS), video + tl.arange(0, VIDEOS)
    frame_slots = tl.arange(0, FRAMES)
    scale = tl.load(logit_scale)
    sign = tl.where(scale < 0, -1.0, 1.0)
    frame_valid = _load_mask(frame_mask, videos, num_videos, frame_slots, G)
    inside = (texts < num_texts)[:, None] & (videos < num_videos)[None, :]
    pair = texts.to(tl.int64)[:, None] * num_videos + videos[None, :]
    # Half for each of the two directions.
    grad = 0.5 * tl.load(grad_similarity + pair, mask=inside, other=0.0)
    pair_log_mass = tl.load(log_mass + pair, mask=inside, other=0.0)
    pair_pooled = tl.load(pooled + pair, mask=inside, other=0.0)
    best_caption = tl.full([TEXTS, VIDEOS, FRAMES], _OUTSIDE, tl.float32)
    best_index = tl.zeros([TEXTS, VIDEOS, FRAMES], tl.int32)
    variance = tl.zeros([TEXTS, VIDEOS], tl.float32)
    for caption in range(0, F, CAPTIONS):
        cosine = _cosines(
            captions,
            frames,
            text,
            caption,
            video,
            num_texts,
            num_videos,
            F,
            G,
            DIM,
            TEXTS,
            CAPTIONS,
            VIDEOS,
            FRAMES,
            REDUCTION,
            PRECISION,
        )
        slots = caption + tl.arange(0, CAPTIONS)
        valid = _load_mask(caption_mask, texts, num_texts, slots, F)[:, :, None]
        best, index = tl.max(
            tl.where(valid[:, :, :, None], cosine, _OUTSIDE), axis=1, return_indices=True
        )
        # Not on equality: the first of several maxima.
        best_index = tl.where(best > best_caption, caption + index, best_index)
        best_caption = tl.maximum(best_caption, best)
        best, index = tl.max(
            tl.where(frame_valid[None, None, :, :], cosine, _OUTSIDE), axis=3, return_indices=True
        )
        weight = tl.where(valid, tl.exp(scale * best - pair_log_mass[:, None, :]), 0.0)
        offset = best - pair_pooled[:, None, :]
        variance += tl.sum(weight * offset * offset, axis=1)
        at = (texts.to(tl.int64)[:, None] * F + slots[None, :])[:, :, None] * num_videos
        at += videos[None, None, :]
        there = inside[:, None, :] & (slots < F)[None, :, None]
        gradient = grad[:, None, :] * weight * (1.0 + scale * offset)
        tl.store(frame_gradient + at, gradient, mask=there)
        tl.store(frame_index + at, index.to(frame_index.dtype.element_ty), mask=there)
    valid = frame_valid[None, :, :]
    reference = tl.full([TEXTS, VIDEOS], _BELOW, tl.float32) * sign
    mass = tl.zeros([TEXTS, VIDEOS], tl.float32)
    reference, mass, moment = _pool(best_caption, valid, scale, sign, reference, mass, mass, 2)
    offset = tl.where(valid, best_caption - reference[:, :, None], 0.0)
    weight = tl.where(valid, tl.exp(scale * offset) / mass[:, :, None], 0.0)
    offset -= (moment / mass)[:, :, None]
    variance += tl.sum(weight * offset * offset, axis=2)
    at = pair[:, :, None] * G + frame_slots[None, None, :]
    there = inside[:, :, None] & (frame_slots < G)[None, None, :]
    tl.store(caption_gradient + at, grad[:, :, None] * weight * (1.0 + scale * offset), mask=there)
    tl.store(caption_index + at, best_index.to(caption_index.dtype.element_ty), mask=there)
    tile = tl.program_id(0).to(tl.int64) * tl.num_programs(1) + tl.program_id(1)
    # Axis by axis: Triton 3.9 fails to compile the sum over both for some layouts.
    total = tl.sum(tl.sum(tl.where(inside, grad * variance, 0.0), axis=1), axis=0)
    tl.store(scale_gradient + tile, total)


@triton.jit
def _cosine_gradient(
    frame_gradient,  # (A·F, B) float32
    frame_index,  # (A·F, B) int
    caption_gradient,  # (A, B·G) float32
    caption_index,  # (A, B·G) int
    rows,  # (R,) captions of all texts
    columns,  # (C,) frames of all videos
    num_texts,
    num_videos,
    F: tl.constexpr,
    G: tl.constexpr,
):
    """Tile (R, C) of the cosines' gradient: two entries a row and video, or column and text."""
    inside = (rows < num_texts * F)[:, None] & (columns < num_videos * G)[None, :]
    at = rows.to(tl.int64)[:, None] * num_videos + (columns // G)[None, :]
    here = tl.load(frame_index + at, mask=inside, other=-1).to(tl.int32) == (columns % G)[None, :]
    gradient = tl.where(here, tl.load(frame_gradient + at, mask=inside, other=0.0), 0.0)
    at = (rows // F).to(tl.int64)[:, None] * num_videos * G + columns[None, :]
    here = tl.load(caption_index + at, mask=inside, other=-1).to(tl.int32) == (rows % F)[:, None]
    return gradient + tl.where(here, tl.load(caption_gradient + at, mask=inside, other=0.0), 0.0)


@triton.jit
def frame_alignment_captions(
    frame_gradient,  # (A, F, B) float32
    frame_index,  # (A, F, B) int
    caption_gradient,  # (A, B, G) float32
    caption_index,  # (A, B, G) int
    frames,  # (B, G, DIM) operands
    gradient,  # (A, F, DIM) float32, out
    num_texts,
    num_videos,
    F: tl.constexpr,
    G: tl.constexpr,
    DIM: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    OUTPUT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Gradient of the captions. Program (tile of captions, part of the features).

    A·F·B·G·D multiply-adds without padding; maxima, 5·A·B·(F + G) bytes, and frames are read
    once per part and tile. Bound by arithmetic.
    """
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    features = tl.program_id(1) * OUTPUT + tl.arange(0, OUTPUT)
    total = tl.zeros([ROWS, OUTPUT], tl.float32)
    for start in range(0, num_videos * G, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        weight = _cosine_gradient(
            frame_gradient,
            frame_index,
            caption_gradient,
            caption_index,
            rows,
            columns,
            num_texts,
            num_videos,
            F,
            G,
        )
        other = _load_matrix(frames, columns, columns < num_videos * G, features, DIM)
        total = tl.dot(weight.to(other.dtype), other, total, input_precision=PRECISION)
    at = rows.to(tl.int64)[:, None] * DIM + features[None, :]
    inside = (rows < num_texts * F)[:, None] & (features < DIM)[None, :]
    tl.store(gradient + at, total, mask=inside)


@triton.jit
def frame_alignment_frames(
    frame_gradient,  # (A, F, B) float32
    frame_index,  # (A, F, B) int
    caption_gradient,  # (A, B, G) float32
    caption_index,  # (A, B, G) int
    captions,  # (A, F, DIM) operands
    gradient,  # (B, G, DIM) float32, added to
    num_texts,
    num_videos,
    F: tl.constexpr,
    G: tl.constexpr,
    DIM: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    OUTPUT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Gradient of the frames, on top of that of other texts.

    Program (tile of frames, part of the features); as frame_alignment_captions.
    """
    columns = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    features = tl.program_id(1) * OUTPUT + tl.arange(0, OUTPUT)
    at = columns.to(tl.int64)[:, None] * DIM + features[None, :]
    inside = (columns < num_videos * G)[:, None] & (features < DIM)[None, :]
    total = tl.load(gradient + at, mask=inside, other=0.0)
    for start in range(0, num_texts * F, COLUMNS):
        rows = start + tl.arange(0, COLUMNS)
        weight = _cosine_gradient(
            frame_gradient,
            frame_index,
            caption_gradient,
            caption_index,
            rows,
            columns,
            num_texts,
            num_videos,
            F,
            G,
        )
        other = _load_matrix(captions, rows, rows < num_texts * F, features, DIM)
        weight = tl.trans(weight.to(other.dtype))
        total = tl.dot(weight, other, total, input_precision=PRECISION)
    tl.store(gradient + at, total, mask=inside)


def cosine_configuration(
    tiles: Tiles, num_captions: int, num_frames: int, dim: int, precision: str
) -> dict:
    """Constants and options of the two kernels that compute cosines."""
    # The least padding; among equals larger groups, which need fewer running maxima.
    captions = min((1, 2, 4, 8, 16), key=lambda n: triton.cdiv(num_captions, n) * n * (1 + 0.3 / n))
    frames = triton.next_power_of_2(num_frames)
    return {
        "F": num_captions,
        "G": num_frames,
        "DIM": dim,
        "TEXTS": max(1, tiles.rows // captions),
        "CAPTIONS": captions,
        "VIDEOS": max(1, tiles.columns // frames),
        "FRAMES": frames,
        "REDUCTION": min(tiles.reduction, max(16, triton.next_power_of_2(dim))),
        "PRECISION": INPUT_PRECISION[precision],
        "num_warps": tiles.warps,
        "num_stages": tiles.stages,
    }


def product_configuration(num_captions: int, num_frames: int, dim: int, precision: str) -> dict:
    """Constants and options of the two kernels that compute gradients of captions and frames."""
    tiles = PRODUCT_TILES[precision]
    return {
        "F": num_captions,
        "G": num_frames,
        "DIM": dim,
        "ROWS": tiles.rows,
        "COLUMNS": tiles.columns,
        "OUTPUT": min(tiles.output, max(16, triton.next_power_of_2(dim))),
        "PRECISION": INPUT_PRECISION[precision],
        "num_warps": tiles.warps,
        "num_stages": tiles.stages,
    }


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
    tiles = SIMILARITY_TILES[precision]
    config = cosine_configuration(tiles, num_captions, num_frames, dim, precision)
    outputs = [captions.new_empty(num_texts, num_videos) for _ in range(3)]
    grid = triton.cdiv(num_texts, config["TEXTS"]), triton.cdiv(num_videos, config["VIDEOS"])
    frame_alignment[grid](
        as_operand(captions, precision),
        as_operand(frames, precision),
        _bytes(caption_mask),
        _bytes(frame_mask),
        logit_scale,
        *outputs,
        num_texts,
        num_videos,
        **config,
    )
    return outputs[0], outputs[1], outputs[2]


def align_backward(
    captions: Tensor,
    frames: Tensor,
    caption_mask: Tensor,
    frame_mask: Tensor,
    logit_scale: Tensor,
    precision: str,
    log_mass: Tensor,
    pooled: Tensor,
    grad_similarity: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # (A, F, D), (B, G, D), ()
    """What the backward operator does: gradients of captions, frames and scale."""
    (num_texts, num_captions, dim), (num_videos, num_frames, _) = captions.shape, frames.shape
    tiles = MAXIMA_TILES[precision]
    cosines = cosine_configuration(tiles, num_captions, num_frames, dim, precision)
    products = product_configuration(num_captions, num_frames, dim, precision)
    rows, parts = products["ROWS"], triton.cdiv(dim, products["OUTPUT"])
    captions, frames = as_operand(captions, precision), as_operand(frames, precision)
    caption_mask, frame_mask = _bytes(caption_mask), _bytes(frame_mask)
    grad_similarity = grad_similarity.contiguous()
    options = {"dtype": torch.float32, "device": captions.device}
    caption_gradient = torch.empty(captions.shape, **options)
    frame_gradient = torch.zeros(frames.shape, **options)
    scale_gradient = torch.zeros((), **options)
    narrow = torch.int8 if max(num_captions, num_frames) <= 127 else torch.int16
    step = max(1, CHUNK_ELEMENTS // (num_videos * (num_captions + num_frames)))
    for start in range(0, num_texts, step):
        chunk = slice(start, min(start + step, num_texts))
        texts = chunk.stop - start
        shapes = (texts, num_captions, num_videos), (texts, num_videos, num_frames)
        maxima = [
            torch.empty(shape, **options | {"dtype": dtype})
            for shape in shapes
            for dtype in (torch.float32, narrow)
        ]
        grid = triton.cdiv(texts, cosines["TEXTS"]), triton.cdiv(num_videos, cosines["VIDEOS"])
        partial = torch.empty(grid, **options)
        frame_alignment_maxima[grid](
            captions[chunk],
            frames,
            caption_mask[chunk],
            frame_mask,
            logit_scale,
            log_mass[chunk],
            pooled[chunk],
            grad_similarity[chunk],
            *maxima,
            partial,
            texts,
            num_videos,
            **cosines,
        )
        scale_gradient += partial.sum()
        frame_alignment_captions[(triton.cdiv(texts * num_captions, rows), parts)](
            *maxima, frames, caption_gradient[chunk], texts, num_videos, **products
        )
        frame_alignment_frames[(triton.cdiv(num_videos * num_frames, rows), parts)](
            *maxima, captions[chunk], frame_gradient, texts, num_videos, **products
        )
    return caption_gradient, frame_gradient, scale_gradient


_frame_alignment = torch.library.custom_op(
    "garevla_triton::frame_alignment", align, mutates_args=()
)
_frame_alignment_backward = torch.library.custom_op(
    "garevla_triton::frame_alignment_backward", align_backward, mutates_args=()
)


def _bytes(mask: Tensor) -> Tensor:
    return mask.contiguous().view(torch.uint8)


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
