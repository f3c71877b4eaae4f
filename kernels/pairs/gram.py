"""Products with the Gram matrices of a tile's videos, and sums of outer products into their
gradients; GRAM_ROWS rows of a matrix at a time."""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from garevla.kernels.pairs.tile import columns_of, spread

# Older compilers fail on products in a loop whose operand the loop gathers columns of.
_UNROLLED = tl.constexpr(tuple(map(int, triton.__version__.split(".")[:2])) < (3, 8))


class Matrices(NamedTuple):
    """A matrix for each video of a tile. To be made where it is handed over: Triton turns constants
    of a tuple that has a name into tensors."""

    first: Any  # (videos, stride, rows, columns): of a video's `stride` the first
    stride: Any
    rows: Any
    columns: Any
    ROW_PAD: Any  # columns of a video in what has one for each row
    COLUMN_PAD: Any  # and in what has one for each column
    TRANSPOSED: Any  # whether memory has rows and columns exchanged


@triton.jit
def blocks(
    of,  # Matrices
    num_videos,
    start,  # first row, of VIDEOS·ROW_PAD
    COUNT: tl.constexpr,  # rows from it on
    TILE,
    INTERLEAVED: tl.constexpr = False,  # rows in the order of interleaved()
):
    """The videos' matrices on the diagonal of (VIDEOS·ROW_PAD, VIDEOS·COLUMN_PAD), COUNT rows of
    it: addresses, and which of them there are."""
    place = tl.arange(0, COUNT)
    if INTERLEAVED:
        place = place // 8 * 8 + place % 4 * 2 + place // 4 % 2
    place += start
    slot, row = place // of.ROW_PAD, place % of.ROW_PAD
    video = tl.minimum(slot, num_videos - 1)
    _, column, _ = columns_of(num_videos, of.COLUMN_PAD, TILE)
    column_slot = tl.arange(0, TILE.VIDEOS * of.COLUMN_PAD) // of.COLUMN_PAD
    inside = (row < of.rows)[:, None] & (column < of.columns)[None, :]
    inside &= slot[:, None] == column_slot[None, :]
    first = video * of.stride * of.rows * of.columns
    if of.TRANSPOSED:
        at = (first + row)[:, None] + column[None, :] * of.rows
    else:
        at = (first + row * of.columns)[:, None] + column[None, :]
    return of.first + at, inside


@triton.jit
def columns_from(
    x,  # (BLOCK_A, M)
    start,
    COUNT: tl.constexpr,
):
    """COUNT columns of x from `start` on."""
    column = start + tl.arange(0, COUNT)
    return tl.gather(x, tl.broadcast_to(column[None, :], (x.shape[0], COUNT)), 1)


@triton.jit
def interleaved(
    x,  # (BLOCK_A, M)
):
    """The columns of x, of every eight the even ones first.

    A thread has columns 2q and 2q + 1 of a product, and is to have q and q + 4 of the next one's
    operand in TF32: in this order they are the same, and nothing moves between threads.
    """
    M: tl.constexpr = x.shape[1]
    eights = tl.permute(tl.reshape(x, (x.shape[0], M // 8, 4, 2)), (0, 1, 3, 2))
    return tl.reshape(eights, (x.shape[0], M))


@triton.jit
def multiply(
    x,  # (BLOCK_A, VIDEOS·ROW_PAD)
    by,  # Matrices
    num_videos,
    TILE,
):
    """x times each video's matrix, (BLOCK_A, VIDEOS·COLUMN_PAD)."""
    M: tl.constexpr = x.shape[1]
    COUNT: tl.constexpr = min(M, TILE.GRAM_ROWS)
    product = tl.zeros((x.shape[0], TILE.VIDEOS * by.COLUMN_PAD), x.dtype)
    if _UNROLLED:
        for start in tl.static_range(0, M, COUNT):
            product = add_product(product, x, by, num_videos, start, COUNT, TILE)
    else:
        for start in tl.range(0, M, COUNT, num_stages=1):
            product = add_product(product, x, by, num_videos, start, COUNT, TILE)
    return product


@triton.jit
def add_product(
    product,  # (BLOCK_A, VIDEOS·COLUMN_PAD)
    x,  # (BLOCK_A, VIDEOS·ROW_PAD)
    by,  # Matrices
    num_videos,
    start,
    COUNT: tl.constexpr,
    TILE,
):
    """The product and COUNT columns of x, from `start` on, times as many rows of the matrices."""
    INTERLEAVED: tl.constexpr = TILE.FORMS == "tf32"
    at, inside = blocks(by, num_videos, start, COUNT, TILE, INTERLEAVED)
    part = x if x.shape[1] == COUNT else columns_from(x, start, COUNT)
    if INTERLEAVED:
        part = interleaved(part)
    rows = tl.load(at, mask=inside, other=0.0)
    return tl.dot(part, rows, product, input_precision=TILE.FORMS, out_dtype=x.dtype)


@triton.jit
def form(
    x,  # (BLOCK_A, VIDEOS·ROW_PAD) not negative
    by,  # Matrices
    num_videos,
    TILE,
):
    """As multiply, and a video's NaN stays with it."""
    if TILE.VIDEOS > 1:
        # Else one video's NaN, times the zeros beside the diagonal, would reach its neighbors (as
        # infinity does, which only an eps of 0 lets arise).
        x = tl.maximum(x, 0.0)
    return multiply(x, by, num_videos, TILE)


@triton.jit
def outer(
    x,  # (BLOCK_A, M)
    y,  # (BLOCK_A, N)
    sums,  # (BLOCK_A/16, M, N)
    TILE,
):
    """sums + Σ x yᵀ over every 16 texts: a warp multiplies its own texts. What stands off the
    diagonal's blocks is to be dropped."""
    PARTS: tl.constexpr = TILE.BLOCK_A // 16
    return tl.dot(
        tl.permute(tl.reshape(x, (PARTS, 16, x.shape[1])), (0, 2, 1)),
        tl.reshape(y, (PARTS, 16, y.shape[1])),
        sums,
        input_precision=TILE.FORMS,
        out_dtype=x.dtype,
    )


@triton.jit
def zero_sums(M: tl.constexpr, N: tl.constexpr, dtype: tl.constexpr, TILE):
    """What outer() starts from."""
    return tl.zeros((TILE.BLOCK_A // 16, M, N), dtype)


@triton.jit
def add_outer(
    to,  # Matrices
    x,  # (BLOCK_A, VIDEOS·ROW_PAD)
    y,  # (BLOCK_A, VIDEOS·COLUMN_PAD)
    num_videos,
    TILE,
    keep,  # else what is there is overwritten
):
    """Add Σ x yᵀ over the tile's texts to matrices that belong to this program.

    Where several warps hold a number, all read it and one stores: a slower one may read the sum
    already. That race is harmless, for what such a warp reads goes nowhere.
    """
    M: tl.constexpr = x.shape[1]
    COUNT: tl.constexpr = min(M, TILE.GRAM_ROWS)
    # Triton's interpreter broadcasts a scalar truth as a number, which is no mask.
    keep = tl.full((1, 1), keep, tl.int32) != 0
    for start in tl.range(0, M, COUNT, num_stages=1):
        at, inside = blocks(to, num_videos, start, COUNT, TILE)
        inside &= ((start + tl.arange(0, COUNT)) // to.ROW_PAD < num_videos)[:, None]
        part = x if COUNT == M else columns_from(x, start, COUNT)
        before = tl.load(at, mask=inside & keep, other=0.0)
        sums = outer(part, y, zero_sums(COUNT, y.shape[1], y.dtype, TILE), TILE)
        tl.store(at, before + tl.sum(sums, 0), mask=inside)


@triton.jit
def accumulate(
    sums,  # of outer()
    matrices,  # (videos, parts, num_rows, num_columns), the first of `parts` for each video
    weight,  # (BLOCK_A, VIDEOS)
    x,  # (BLOCK_A, VIDEOS·ROW_PAD)
    y,  # (BLOCK_A, VIDEOS·COLUMN_PAD)
    num_rows,
    num_columns,
    parts,
    num_videos,
    TILE,
    keep,  # else what is there is overwritten
):
    """Add Σ w x yᵀ to sums that registers hold; where those would be too many, to the matrices."""
    ROW_PAD: tl.constexpr = x.shape[1] // TILE.VIDEOS
    COLUMN_PAD: tl.constexpr = y.shape[1] // TILE.VIDEOS
    weighted = spread(weight, ROW_PAD, TILE) * x
    if TILE.SUMS_HELD:
        sums = outer(weighted, y, sums, TILE)
    else:
        add_outer(
            Matrices(matrices, parts, num_rows, num_columns, ROW_PAD, COLUMN_PAD, False),
            weighted,
            y,
            num_videos,
            TILE,
            keep,
        )
    return sums


@triton.jit
def store_sums(
    sums,  # of accumulate()
    matrices,  # as there
    num_rows,
    num_columns,
    parts,
    num_videos,
    TILE,
):
    """Write the sums that registers hold."""
    if TILE.SUMS_HELD:
        M: tl.constexpr = sums.shape[1]
        ROW_PAD: tl.constexpr = M // TILE.VIDEOS
        COLUMN_PAD: tl.constexpr = sums.shape[2] // TILE.VIDEOS
        at, inside = blocks(
            Matrices(matrices, parts, num_rows, num_columns, ROW_PAD, COLUMN_PAD, False),
            num_videos,
            0,
            M,
            TILE,
        )
        inside &= (tl.arange(0, M) // ROW_PAD < num_videos)[:, None]
        tl.store(at, tl.sum(sums, 0), mask=inside)
