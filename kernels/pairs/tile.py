"""What a tile of text-video pairs is: its texts, its videos, its columns and sums over them.

A tile is BLOCK_A texts (rows) with VIDEOS videos next to each other. Its columns are the videos'
own, K_PAD (or F_PAD) for each: k < H·F stands for heads and frames, H·F for LN3's constant,
H·F + 1 for the last bias; the rest is padding, zero throughout, so that attention, hidden vector
and coefficients, and their Gram matrices padded with zeros, all have one shape. Several videos
share one product of matrices; their Gram matrices are then the blocks of a diagonal. What a pair
has but one of is a tile (BLOCK_A, VIDEOS).
"""

from __future__ import annotations

import triton
import triton.language as tl

from garevla.kernels.pairs.arguments import Texts, Videos
from garevla.kernels.rounding import rounded_product


@triton.jit
def tile_texts(text, start, TILE):
    """The texts from ``start`` (int64) on: a tile counts its own from 0, in 32 bits."""
    rows = start * TILE.DIM
    return Texts(
        text.features + rows,
        text.operand + rows,
        text.mean + start,
        text.variance + start,
        text.squared_norm + start,
    )


@triton.jit
def tile_videos(video, first, TILE):
    """The videos from ``first`` (int64) on, likewise."""
    F: tl.constexpr = TILE.FRAMES
    HF: tl.constexpr = TILE.HEADS * F
    return Videos(
        video.rows + first * ((2 * HF + F + 2) * TILE.DIM),
        video.frame_weight + first * F,
        video.key_offset + first * HF,
        video.key_bias + first * HF,
        video.mean_frame + first * TILE.DIM,
        video.mean + first,
        video.variance + first,
        video.value_gram + first * (HF * HF),
        video.hidden_gram + first * ((HF + 1) * (HF + 1)),
        video.basis_gram + first * ((HF + 2) * (HF + 2)),
        video.frame_gram + first * (F * F),
        video.basis_frame + first * ((HF + 2) * F),
    )


@triton.jit
def recount(num_videos, num_texts):
    """num_videos once more for each tile; num_texts is never negative.

    What the compiler does not know: else it would work out all addresses of the videos' factors
    before the loop over tiles, and keep them in more registers than there are.
    """
    return num_videos + (num_texts >> 31)


@triton.jit
def columns_of(num_videos, PAD: tl.constexpr, TILE, TILES: tl.constexpr = 1):
    """Of each column: its video (TILES·VIDEOS·PAD), its place there, and whether it exists.

    Videos past the last are computed as the last once more; masks drop them.
    """
    column = tl.arange(0, TILES * TILE.VIDEOS * PAD)
    video = column // PAD
    return tl.minimum(video, num_videos - 1), column % PAD, video < num_videos


@triton.jit
def tile_columns(
    x,  # (BLOCK_A, GROUP·VIDEOS·PAD)
    n: tl.constexpr,
    TILE,
):
    """The columns of the group's n-th tile, (BLOCK_A, VIDEOS·PAD)."""
    tl.static_assert(TILE.GROUP <= 2, "a group has one tile or two")
    if TILE.GROUP == 1:
        columns = x
    else:
        halves = tl.reshape(x, (x.shape[0], 2, x.shape[1] // 2))
        first, second = tl.split(tl.permute(halves, (0, 2, 1)))
        columns = first if n == 0 else second
    return columns


@triton.jit
def videos_of(num_videos, TILE):
    """The tile's videos (VIDEOS) and whether they exist."""
    video = tl.arange(0, TILE.VIDEOS)
    return tl.minimum(video, num_videos - 1), video < num_videos


@triton.jit
def total(x, TILE):
    """Sum over each video's columns, (BLOCK_A, VIDEOS)."""
    if TILE.VIDEOS == 1:
        sums = tl.sum(x, 1, keep_dims=True)
    else:
        sums = tl.sum(tl.reshape(x, (x.shape[0], TILE.VIDEOS, x.shape[1] // TILE.VIDEOS)), 2)
    return sums


@triton.jit
def inner(
    x,  # (BLOCK_A, VIDEOS·PAD)
    y,  # (BLOCK_A, VIDEOS·PAD)
    TILE,
):
    """Sum of x·y over each video's columns, (BLOCK_A, VIDEOS)."""
    return total(terms(x, y, TILE), TILE)


@triton.jit
def terms(
    x,  # (BLOCK_A, VIDEOS·PAD)
    y,  # (BLOCK_A, VIDEOS·PAD)
    TILE,
):
    """What inner() sums: products."""
    # A thread has several columns of a tensor core's tile. It adds their products up, fused as the
    # compiler likes, before it exchanges sums; else products are rounded (rounding.py).
    return x * y if TILE.FORMS == "tf32" else rounded_product(x, y)


@triton.jit
def largest(x, TILE):
    """Maximum over each video's columns, (BLOCK_A, VIDEOS)."""
    if TILE.VIDEOS == 1:
        top = tl.max(x, 1, keep_dims=True)
    else:
        top = tl.max(tl.reshape(x, (x.shape[0], TILE.VIDEOS, x.shape[1] // TILE.VIDEOS)), 2)
    return top


@triton.jit
def spread(
    x,  # (BLOCK_A, VIDEOS)
    PAD: tl.constexpr,
    TILE,
):
    """Each video's number at all of its columns, (BLOCK_A, VIDEOS·PAD)."""
    if TILE.VIDEOS == 1:
        wide = tl.broadcast_to(x, (x.shape[0], PAD))
    else:
        wide = tl.broadcast_to(x[:, :, None], (x.shape[0], TILE.VIDEOS, PAD))
        wide = tl.reshape(wide, (x.shape[0], TILE.VIDEOS * PAD))
    return wide


@triton.jit
def head_sums(
    x,  # (BLOCK_A, VIDEOS·PAD)
    head,  # (VIDEOS·PAD) head of each column, HEADS or more in the padding
    PAD: tl.constexpr,
    HEADS: tl.constexpr,
    TILE,
):
    """Each column's sum over the columns of its video and head."""
    if HEADS == 1:
        sums = spread(total(x, TILE), PAD, TILE)
    else:
        sums = tl.zeros_like(x)
        for h in tl.static_range(HEADS):
            of_head = (head == h)[None, :]
            part = spread(total(tl.where(of_head, x, 0.0), TILE), PAD, TILE)
            sums = tl.where(of_head, part, sums)
    return sums
