"""The arithmetic of a tile of text-video pairs, shared by the pair kernels.

A tile is BLOCK_A texts (rows) with VIDEOS videos next to each other. Its columns are the videos'
own, K_PAD (or F_PAD) for each: k < H·F stands for heads and frames, H·F for LN3's constant,
H·F + 1 for the last bias; the rest is padding, zero throughout, so that attention, hidden vector
and coefficients, and their Gram matrices padded with zeros, all have one shape. Several videos
share one product of matrices; their Gram matrices are then the blocks of a diagonal. What a pair
has but one of is a tile (BLOCK_A, VIDEOS). Derivation and symbols: docs/derivation.md; compiled
namesake: csrc/pair_arithmetic.h.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from garevla.kernels.pairs.arguments import Texts, Videos
from garevla.kernels.rounding import rounded_product

# A gap shorter than this part of ‖t‖² + ‖v̄‖² is formed itself: as a difference of squares its
# variance would cancel.
CLOSE = tl.constexpr(0.125)


class Products(NamedTuple):
    """Dot products of a tile's texts with the rows of its videos."""

    key: Any  # (BLOCK_A, VIDEOS·K_PAD)
    frame: Any  # (BLOCK_A, VIDEOS·F_PAD)
    basis: Any  # (BLOCK_A, VIDEOS·K_PAD)


class Pairs(NamedTuple):
    """What the arithmetic makes of the products; all that its adjoint needs."""

    similarity: Any  # (BLOCK_A, VIDEOS)
    increment_norm: Any  # (BLOCK_A, VIDEOS) ‖Δ‖
    coefficients: Any  # (BLOCK_A, VIDEOS·K_PAD)
    gap_key: Any  # (BLOCK_A, VIDEOS·K_PAD)
    attention: Any  # (BLOCK_A, VIDEOS·K_PAD)
    attention_form: Any  # (BLOCK_A, VIDEOS·K_PAD) attention · value_gram, and so on
    hidden: Any  # (BLOCK_A, VIDEOS·K_PAD)
    hidden_form: Any  # (BLOCK_A, VIDEOS·K_PAD)
    basis_form: Any  # (BLOCK_A, VIDEOS·K_PAD)
    basis_pool: Any  # (BLOCK_A, VIDEOS·K_PAD) pool · basis_frameᵀ
    pool: Any  # (BLOCK_A, VIDEOS·F_PAD)
    frame_form: Any  # (BLOCK_A, VIDEOS·F_PAD)
    r1: Any  # (BLOCK_A, VIDEOS), and all that follows
    r2: Any
    r3: Any
    inverse_text: Any  # 1 / ‖t + Δ‖, at most INVERSE_TINY
    inverse_video: Any  # 1 / ‖p‖, likewise


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
def columns_of(num_videos, PAD: tl.constexpr, TILE):
    """Of each column: its video (VIDEOS·PAD), its place there, and whether it exists.

    Videos past the last are computed as the last once more; masks drop them.
    """
    column = tl.arange(0, TILE.VIDEOS * PAD)
    video = column // PAD
    return tl.minimum(video, num_videos - 1), column % PAD, video < num_videos


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


@triton.jit
def masked_softmax(
    x,  # (BLOCK_A, VIDEOS·PAD) logits
    valid,  # (VIDEOS·PAD)
    head,  # (VIDEOS·PAD)
    PAD: tl.constexpr,
    HEADS: tl.constexpr,
    TILE,
):
    """Softmax over the valid columns of each video and head; exactly 0 at the others."""
    x = tl.where(valid[None, :], x, float("-inf"))
    if HEADS == 1:
        top = spread(largest(x, TILE), PAD, TILE)
    else:
        top = tl.zeros_like(x)
        for h in tl.static_range(HEADS):
            of_head = (head == h)[None, :]
            part = spread(largest(tl.where(of_head, x, float("-inf")), TILE), PAD, TILE)
            top = tl.where(of_head, part, top)
    weights = tl.exp(x - top)
    if HEADS == 1:
        inverse = spread(1.0 / total(weights, TILE), PAD, TILE)
    else:
        inverse = 1.0 / tl.where(valid[None, :], head_sums(weights, head, PAD, HEADS, TILE), 1.0)
    return weights * inverse


@triton.jit
def blocks(
    matrices,  # (videos, stride, rows, columns), the first of `stride` for each video
    stride,
    num_videos,
    start,  # first row, of VIDEOS·ROW_PAD
    COUNT: tl.constexpr,  # rows from it on
    ROW_PAD: tl.constexpr,
    num_rows,
    COLUMN_PAD: tl.constexpr,
    num_columns,
    TILE,
    TRANSPOSED: tl.constexpr = False,  # rows and columns are those of the matrices' transposes
):
    """The videos' matrices on the diagonal of (VIDEOS·ROW_PAD, VIDEOS·COLUMN_PAD), COUNT rows of
    it: addresses, and which of them there are."""
    place = start + tl.arange(0, COUNT)
    slot, row = place // ROW_PAD, place % ROW_PAD
    video = tl.minimum(slot, num_videos - 1)
    _, column, _ = columns_of(num_videos, COLUMN_PAD, TILE)
    column_slot = tl.arange(0, TILE.VIDEOS * COLUMN_PAD) // COLUMN_PAD
    inside = (row < num_rows)[:, None] & (column < num_columns)[None, :]
    inside &= slot[:, None] == column_slot[None, :]
    first = video * stride * num_rows * num_columns
    if TRANSPOSED:
        at = (first + row)[:, None] + column[None, :] * num_rows
    else:
        at = (first + row * num_columns)[:, None] + column[None, :]
    return matrices + at, inside


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
def multiply(
    x,  # (BLOCK_A, VIDEOS·ROW_PAD)
    matrices,  # (videos, rows, columns)
    num_videos,
    ROW_PAD: tl.constexpr,
    num_rows,
    COLUMN_PAD: tl.constexpr,
    num_columns,
    TILE,
    TRANSPOSED: tl.constexpr = False,
):
    """x times each video's matrix, (BLOCK_A, VIDEOS·COLUMN_PAD)."""
    M: tl.constexpr = TILE.VIDEOS * ROW_PAD
    COUNT: tl.constexpr = min(M, TILE.GRAM_ROWS)
    product = tl.zeros((x.shape[0], TILE.VIDEOS * COLUMN_PAD), x.dtype)
    for start in tl.range(0, M, COUNT, num_stages=1):
        at, inside = blocks(
            matrices,
            1,
            num_videos,
            start,
            COUNT,
            ROW_PAD,
            num_rows,
            COLUMN_PAD,
            num_columns,
            TILE,
            TRANSPOSED,
        )
        part = x if COUNT == M else columns_from(x, start, COUNT)
        rows = tl.load(at, mask=inside, other=0.0)
        product = tl.dot(part, rows, product, input_precision=TILE.FORMS, out_dtype=x.dtype)
    return product


@triton.jit
def form(
    x,  # (BLOCK_A, VIDEOS·ROW_PAD) not negative
    matrices,  # (videos, rows, columns)
    num_videos,
    ROW_PAD: tl.constexpr,
    num_rows,
    COLUMN_PAD: tl.constexpr,
    num_columns,
    TILE,
    TRANSPOSED: tl.constexpr = False,
):
    """As multiply, and a video's NaN stays with it."""
    if TILE.VIDEOS > 1:
        # Else one video's NaN, times the zeros beside the diagonal, would reach its neighbors (as
        # infinity does, which only an eps of 0 lets arise).
        x = tl.maximum(x, 0.0)
    return multiply(
        x,
        matrices,
        num_videos,
        ROW_PAD,
        num_rows,
        COLUMN_PAD,
        num_columns,
        TILE,
        TRANSPOSED,
    )


@triton.jit
def outer(
    x,  # (BLOCK_A, M)
    y,  # (BLOCK_A, N)
    TILE,
):
    """Σ x yᵀ over every 16 texts, (BLOCK_A/16, M, N): a warp then multiplies its own texts. What
    stands off the diagonal's blocks is to be dropped."""
    PARTS: tl.constexpr = TILE.BLOCK_A // 16
    return tl.dot(
        tl.permute(tl.reshape(x, (PARTS, 16, x.shape[1])), (0, 2, 1)),
        tl.reshape(y, (PARTS, 16, y.shape[1])),
        input_precision=TILE.FORMS,
        out_dtype=x.dtype,
    )


@triton.jit
def add_outer(
    matrices,  # (videos, parts, rows, columns), the first of `parts` for each video
    x,  # (BLOCK_A, VIDEOS·ROW_PAD)
    y,  # (BLOCK_A, VIDEOS·COLUMN_PAD)
    parts,
    num_videos,
    ROW_PAD: tl.constexpr,
    num_rows,
    COLUMN_PAD: tl.constexpr,
    num_columns,
    TILE,
    keep=True,  # else what is there is overwritten
):
    """Add Σ x yᵀ over the tile's texts to matrices that belong to this program.

    Where several warps hold a number, all read it and one stores: a slower one may read the sum
    already. That race is harmless, for what such a warp reads goes nowhere.
    """
    M: tl.constexpr = TILE.VIDEOS * ROW_PAD
    COUNT: tl.constexpr = min(M, TILE.GRAM_ROWS)
    for start in tl.range(0, M, COUNT, num_stages=1):
        at, inside = blocks(
            matrices,
            parts,
            num_videos,
            start,
            COUNT,
            ROW_PAD,
            num_rows,
            COLUMN_PAD,
            num_columns,
            TILE,
        )
        inside &= ((start + tl.arange(0, COUNT)) // ROW_PAD < num_videos)[:, None]
        part = x if COUNT == M else columns_from(x, start, COUNT)
        before = tl.load(at, mask=inside & keep, other=0.0)
        tl.store(at, before + tl.sum(outer(part, y, TILE), 0), mask=inside)


@triton.jit
def products(text, video, num_texts, num_videos, TILE):
    """The one part with D in it: dot products of the tile's texts with its videos' rows."""
    ATTENTION: tl.constexpr = TILE.HEADS * TILE.FRAMES
    ROWS: tl.constexpr = 2 * ATTENTION + TILE.FRAMES + 2
    DIM: tl.constexpr = TILE.DIM
    of_key, k, _ = columns_of(num_videos, TILE.K_PAD, TILE)
    of_frame, f, _ = columns_of(num_videos, TILE.F_PAD, TILE)
    key_rows = (video.rows + (of_key * ROWS + k) * DIM)[:, None]
    frame_rows = (video.rows + (of_frame * ROWS + ATTENTION + f) * DIM)[:, None]
    basis_rows = key_rows + (ATTENTION + TILE.FRAMES) * DIM
    texts = tl.arange(0, TILE.BLOCK_A)
    text_rows = (text.operand + texts * DIM)[:, None]
    inside = (texts < num_texts)[:, None]
    dtype = text.features.dtype.element_ty
    key = tl.zeros((TILE.BLOCK_A, TILE.VIDEOS * TILE.K_PAD), dtype)
    frame = tl.zeros((TILE.BLOCK_A, TILE.VIDEOS * TILE.F_PAD), dtype)
    basis = tl.zeros((TILE.BLOCK_A, TILE.VIDEOS * TILE.K_PAD), dtype)
    for start in range(0, DIM, TILE.BLOCK_D):
        d = (start + tl.arange(0, TILE.BLOCK_D))[None, :]
        lhs = tl.load(text_rows + d, mask=inside & (d < DIM), other=0.0)
        rhs = tl.load(key_rows + d, mask=(k < ATTENTION)[:, None] & (d < DIM), other=0.0)
        key = tl.dot(lhs, tl.trans(rhs), key, input_precision=TILE.PRODUCTS, out_dtype=dtype)
        rhs = tl.load(frame_rows + d, mask=(f < TILE.FRAMES)[:, None] & (d < DIM), other=0.0)
        frame = tl.dot(lhs, tl.trans(rhs), frame, input_precision=TILE.PRODUCTS, out_dtype=dtype)
        rhs = tl.load(basis_rows + d, mask=(k < ATTENTION + 2)[:, None] & (d < DIM), other=0.0)
        basis = tl.dot(lhs, tl.trans(rhs), basis, input_precision=TILE.PRODUCTS, out_dtype=dtype)
    return Products(key, frame, basis)


@triton.jit
def gap_variance(
    text,
    video,
    num_texts,
    num_videos,
    text_frame,  # (BLOCK_A, VIDEOS·F_PAD)
    TILE,
):
    """Variance over D of v̄ − t, (BLOCK_A, VIDEOS)."""
    videos, _ = videos_of(num_videos, TILE)
    of_frame, f, _ = columns_of(num_videos, TILE.F_PAD, TILE)
    weight = tl.load(
        video.frame_weight + of_frame * TILE.FRAMES + f, mask=f < TILE.FRAMES, other=0.0
    )
    texts = tl.arange(0, TILE.BLOCK_A)
    inside = texts < num_texts
    text_mean = tl.load(text.mean + texts, mask=inside, other=0.0)
    text_variance = tl.load(text.variance + texts, mask=inside, other=0.0)
    product = (
        total(tl.where(weight > 0, rounded_product(text_frame, weight[None, :]), 0.0), TILE)
        / TILE.DIM
    )
    mean = tl.load(video.mean + videos)
    product -= text_mean[:, None] * mean[None, :]
    video_variance = tl.load(video.variance + videos)
    variance = text_variance[:, None] + video_variance[None, :] - 2 * product
    # Means count too: they are in the product, and cancel.
    bound = (text_variance + text_mean * text_mean)[:, None] + video_variance[None, :]
    bound += (mean * mean)[None, :]
    close = inside[:, None] & (variance < bound * CLOSE)
    if tl.max(tl.reshape(close.to(tl.int32), (TILE.BLOCK_A * TILE.VIDEOS,)), 0) > 0:
        variance = exact_gap_variance(text, video, inside, text_mean, videos, TILE)
    return variance


@triton.jit
def exact_gap_variance(
    text,
    video,
    inside,  # (BLOCK_A) which texts exist
    text_mean,  # (BLOCK_A)
    videos,  # (VIDEOS) the tile's
    TILE,
):
    """The same from the gaps themselves, feature by feature."""
    dtype = text.features.dtype.element_ty
    texts = tl.arange(0, TILE.BLOCK_A)
    slot = tl.arange(0, TILE.VIDEOS)
    squares = tl.zeros((TILE.BLOCK_A, TILE.VIDEOS), dtype)
    for start in range(0, TILE.DIM, TILE.BLOCK_D):
        d = start + tl.arange(0, TILE.BLOCK_D)
        mask = inside[:, None] & (d < TILE.DIM)[None, :]
        x = tl.load(text.features + texts[:, None] * TILE.DIM + d[None, :], mask=mask, other=0.0)
        for place in tl.static_range(TILE.VIDEOS):
            this = tl.max(tl.where(slot == place, videos, 0), 0)
            center = tl.load(video.mean_frame + this * TILE.DIM + d, mask=d < TILE.DIM, other=0.0)
            gap = tl.where(mask, (x - text_mean[:, None]) - center[None, :], 0.0)
            part = tl.sum(rounded_product(gap, gap), 1)[:, None]
            squares += tl.where((slot == place)[None, :], part, 0.0)
    return squares / TILE.DIM


@triton.jit
def inverse_root(
    x,  # (BLOCK_A, VIDEOS)
    TILE,
):
    """1 / √x, where x is no smaller than the smallest number."""
    # NaN passes through, here and below: the condition is on the other side.
    clamped = x <= TILE.TINY
    return tl.where(clamped, TILE.INVERSE_TINY, 1.0 / tl.sqrt(tl.where(clamped, 1.0, x)))


@triton.jit
def pair_forward(text, video, num_texts, num_videos, dot, TILE):
    """From the products of a tile to its pairs."""
    FRAMES: tl.constexpr = TILE.FRAMES
    ATTENTION: tl.constexpr = TILE.HEADS * FRAMES
    HIDDEN: tl.constexpr = ATTENTION + 1
    BASIS: tl.constexpr = ATTENTION + 2
    K_PAD: tl.constexpr = TILE.K_PAD
    F_PAD: tl.constexpr = TILE.F_PAD
    of_key, k, _ = columns_of(num_videos, K_PAD, TILE)
    of_frame, f, _ = columns_of(num_videos, F_PAD, TILE)
    weight = video.frame_weight
    valid_key = tl.load(weight + of_key * FRAMES + k % FRAMES, mask=k < ATTENTION, other=0.0) > 0
    valid_frame = tl.load(weight + of_frame * FRAMES + f, mask=f < FRAMES, other=0.0) > 0

    variance = gap_variance(text, video, num_texts, num_videos, dot.frame, TILE)

    # The text-conditioned video, pooled by the uncorrected text.
    pool = masked_softmax(
        dot.frame * (1.0 / TILE.TEMPERATURE), valid_frame, f // F_PAD, F_PAD, 1, TILE
    )
    basis_pool = form(
        pool, video.basis_frame, num_videos, F_PAD, FRAMES, K_PAD, BASIS, TILE, TRANSPOSED=True
    )
    frame_form = form(pool, video.frame_gram, num_videos, F_PAD, FRAMES, F_PAD, FRAMES, TILE)
    squared_video = total(rounded_product(pool, frame_form), TILE)
    score = total(rounded_product(pool, dot.frame), TILE)

    # The gap's attention over the frames, per head.
    r1 = 1.0 / tl.sqrt(variance + TILE.GAP_EPS)
    offset = tl.load(video.key_offset + of_key * ATTENTION + k, mask=valid_key, other=0.0)
    bias = tl.load(video.key_bias + of_key * ATTENTION + k, mask=valid_key, other=0.0)
    gap_key = offset[None, :] - dot.key
    logits = bias[None, :] + gap_key * spread(r1, K_PAD, TILE)
    attention = masked_softmax(logits, valid_key, k // FRAMES, K_PAD, TILE.HEADS, TILE)

    # Through LN2 and LN3, whose variances are quadratic forms.
    attention_form = form(
        attention, video.value_gram, num_videos, K_PAD, ATTENTION, K_PAD, ATTENTION, TILE
    )
    r2 = 1.0 / tl.sqrt(total(rounded_product(attention, attention_form), TILE) + TILE.VALUE_EPS)
    constant = tl.where(k == ATTENTION, 1.0, 0.0).to(r2.dtype)
    hidden = attention * spread(r2, K_PAD, TILE) + constant[None, :]
    hidden_form = form(hidden, video.hidden_gram, num_videos, K_PAD, HIDDEN, K_PAD, HIDDEN, TILE)
    r3 = 1.0 / tl.sqrt(total(rounded_product(hidden, hidden_form), TILE) + TILE.HIDDEN_EPS)
    last = tl.where(k == ATTENTION + 1, 1.0, 0.0).to(r3.dtype)
    coefficients = hidden * spread(r3, K_PAD, TILE) + last[None, :]
    basis_form = form(coefficients, video.basis_gram, num_videos, K_PAD, BASIS, K_PAD, BASIS, TILE)
    squared_increment = total(rounded_product(coefficients, basis_form), TILE)
    increment_norm = tl.sqrt(tl.where(squared_increment <= 0, 0.0, squared_increment))

    score += total(rounded_product(coefficients, basis_pool), TILE)
    texts = tl.arange(0, TILE.BLOCK_A)
    squared_norm = tl.load(text.squared_norm + texts, mask=texts < num_texts, other=0.0)
    squared_text = squared_norm[:, None] + squared_increment
    squared_text += 2 * total(rounded_product(coefficients, dot.basis), TILE)
    inverse_text = inverse_root(squared_text, TILE)
    inverse_video = inverse_root(squared_video, TILE)
    return Pairs(
        score * inverse_text * inverse_video,
        increment_norm,
        coefficients,
        gap_key,
        attention,
        attention_form,
        hidden,
        hidden_form,
        basis_form,
        basis_pool,
        pool,
        frame_form,
        r1,
        r2,
        r3,
        inverse_text,
        inverse_video,
    )
