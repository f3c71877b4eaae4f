"""Frame alignment: what the kernels that compute cosines share, forward and backward."""

from __future__ import annotations

import triton
import triton.language as tl

from garevla.kernels.operands import load_operand
from garevla.kernels.rounding import rounded_product

OUTSIDE = tl.constexpr(float("-inf"))
_BELOW = tl.constexpr(-4.0)  # every cosine, yet finite
# Tiles of texts that meet the same videos one after another, so that both come from the L2 cache.
_GROUP = tl.constexpr(16)


@triton.jit
def tile_of_pairs(num_texts, num_videos, TILE: tl.constexpr):
    """First text and first video of this program; the grid has one axis."""
    text_tiles = tl.cdiv(num_texts, TILE.TEXTS)
    video_tiles = tl.cdiv(num_videos, TILE.VIDEOS)
    program = tl.program_id(0)
    text_tile, video_tile = tl.swizzle2d(
        program // video_tiles, program % video_tiles, text_tiles, video_tiles, _GROUP
    )
    return text_tile * TILE.TEXTS, video_tile * TILE.VIDEOS


@triton.jit
def load_mask(
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
def cosines(
    features,  # Features
    text,  # first of the tile
    caption,  # first of each text
    video,  # first of the tile
    num_texts,
    num_videos,
    TILE: tl.constexpr,
):
    """Cosines (TEXTS, CAPTIONS, VIDEOS, FRAMES) of a tile."""
    row = tl.arange(0, TILE.TEXTS * TILE.CAPTIONS)
    column = tl.arange(0, TILE.VIDEOS * TILE.FRAMES)
    row_text, row_caption = text + row // TILE.CAPTIONS, caption + row % TILE.CAPTIONS
    column_video, column_frame = video + column // TILE.FRAMES, column % TILE.FRAMES
    row_inside = (row_text < num_texts) & (row_caption < TILE.F)
    column_inside = (column_video < num_videos) & (column_frame < TILE.G)
    row, column = row_text * TILE.F + row_caption, column_video * TILE.G + column_frame
    # Not tl.zeros: in Triton 3.6 it fails on sizes from a tuple.
    cosine = tl.full([TILE.TEXTS * TILE.CAPTIONS, TILE.VIDEOS * TILE.FRAMES], 0.0, tl.float32)
    for start in range(0, TILE.DIM, TILE.REDUCTION):
        d = start + tl.arange(0, TILE.REDUCTION)
        left = load_operand(features.captions, row, row_inside, TILE.DIM, d, TILE.DIM)
        right = load_operand(features.frames, column, column_inside, TILE.DIM, d, TILE.DIM)
        cosine = tl.dot(left, tl.trans(right), cosine, input_precision=TILE.PRECISION)
    return tl.reshape(cosine, (TILE.TEXTS, TILE.CAPTIONS, TILE.VIDEOS, TILE.FRAMES))


@triton.jit
def empty_pool(sign, TILE: tl.constexpr):
    """Of no maxima: what :func:`pool` begins with, three times (TEXTS, VIDEOS)."""
    reference = tl.full([TILE.TEXTS, TILE.VIDEOS], _BELOW, tl.float32) * sign
    nothing = tl.full([TILE.TEXTS, TILE.VIDEOS], 0.0, tl.float32)
    return reference, nothing, nothing


@triton.jit
def pool(
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
    moment = decay * (moment + shift * mass) + tl.sum(rounded_product(weight, offset), axis=AXIS)
    mass = decay * mass + tl.sum(weight, axis=AXIS)
    return top, mass, moment
