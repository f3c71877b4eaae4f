"""The arithmetic of a tile of text-video pairs (tile.py), shared by the pair kernels.

Derivation and symbols: docs/derivation.md; compiled namesake: csrc/pair_arithmetic.h.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import triton
import triton.language as tl

from garevla.kernels.pairs.gram import Matrices, form
from garevla.kernels.pairs.tile import (
    columns_of,
    head_sums,
    inner,
    largest,
    spread,
    terms,
    tile_columns,
    total,
    videos_of,
)
from garevla.kernels.rounding import rounded_product

# A gap shorter than this part of ‖t‖² + ‖v̄‖² is formed itself: as a difference of squares its
# variance would cancel.
CLOSE = tl.constexpr(0.125)
LOG2_E = tl.constexpr(math.log2(math.e))


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
    inverse_text: Any  # 1 / ‖t + Δ‖; 0 of a zero vector
    inverse_video: Any  # 1 / ‖p‖, likewise


@triton.jit
def masked_softmax(
    x,  # (BLOCK_A, VIDEOS·PAD)
    scale: tl.constexpr,  # of the logits, which are scale · x; positive
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
    # The difference first: of a single valid column the weight is exactly 1, whatever the text is.
    BASE_2: tl.constexpr = scale * LOG2_E
    weights = tl.exp2((x - top) * BASE_2)
    if HEADS == 1:
        root = spread(tl.rsqrt(total(weights, TILE)), PAD, TILE)
    else:
        sums = head_sums(weights, head, PAD, HEADS, TILE)
        root = tl.rsqrt(tl.where(valid[None, :], sums, 1.0))
    # The inverse sum in two instructions, where a division takes eight.
    return weights * (root * root)


@triton.jit
def products(text, video, num_texts, num_videos, TILE):
    """The one part with D in it: dot products of the tile's texts with its videos' rows. Of GROUP
    tiles, one after another along the videos: they read the texts once."""
    ATTENTION: tl.constexpr = TILE.HEADS * TILE.FRAMES
    ROWS: tl.constexpr = 2 * ATTENTION + TILE.FRAMES + 2
    DIM: tl.constexpr = TILE.DIM
    of_key, k, _ = columns_of(num_videos, TILE.K_PAD, TILE, TILE.GROUP)
    of_frame, f, _ = columns_of(num_videos, TILE.F_PAD, TILE, TILE.GROUP)
    key_rows = (video.rows + (of_key * ROWS + k) * DIM)[:, None]
    frame_rows = (video.rows + (of_frame * ROWS + ATTENTION + f) * DIM)[:, None]
    basis_rows = key_rows + (ATTENTION + TILE.FRAMES) * DIM
    texts = tl.arange(0, TILE.BLOCK_A)
    text_rows = (text.operand + texts * DIM)[:, None]
    inside = (texts < num_texts)[:, None]
    dtype = text.features.dtype.element_ty
    VIDEOS: tl.constexpr = TILE.GROUP * TILE.VIDEOS
    key = tl.zeros((TILE.BLOCK_A, VIDEOS * TILE.K_PAD), dtype)
    frame = tl.zeros((TILE.BLOCK_A, VIDEOS * TILE.F_PAD), dtype)
    basis = tl.zeros((TILE.BLOCK_A, VIDEOS * TILE.K_PAD), dtype)
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
def tile_products(
    dot,  # Products of GROUP tiles
    n: tl.constexpr,
    TILE,
):
    """Those of the n-th."""
    return Products(
        tile_columns(dot.key, n, TILE),
        tile_columns(dot.frame, n, TILE),
        tile_columns(dot.basis, n, TILE),
    )


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
    product = inner(text_frame, tl.broadcast_to(weight[None, :], text_frame.shape), TILE) / TILE.DIM
    mean = tl.load(video.mean + videos)
    product -= text_mean[:, None] * mean[None, :]
    video_variance = tl.load(video.variance + videos)
    variance = text_variance[:, None] + video_variance[None, :] - 2 * product
    # Means count too: they are in the product, and cancel.
    bound = (text_variance + text_mean * text_mean)[:, None] + video_variance[None, :]
    bound += (mean * mean)[None, :]
    close = inside[:, None] & (variance < bound * CLOSE)
    if tl.max(tl.reshape(close.to(tl.int32), (TILE.BLOCK_A * TILE.VIDEOS,)), 0) > 0:
        variance = exact_gap_variance(text, video, inside, videos, TILE)
    return variance


@triton.jit
def exact_gap_variance(
    text,
    video,
    inside,  # (BLOCK_A) which texts exist
    videos,  # (VIDEOS) the tile's
    TILE,
):
    """The same from the gaps themselves, feature by feature."""
    dtype = text.features.dtype.element_ty
    texts = tl.arange(0, TILE.BLOCK_A)
    slot = tl.arange(0, TILE.VIDEOS)
    text_mean = tl.load(text.mean + texts, mask=inside, other=0.0)
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
    """1 / √x, and 0 of 0: a cosine with a zero vector is 0, and has no gradient."""
    # NaN passes through, here and below: the condition is on the other side.
    zero = x < TILE.TINY
    return tl.where(zero, 0.0, tl.rsqrt(tl.where(zero, 1.0, x)))


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
        dot.frame, 1.0 / TILE.TEMPERATURE, valid_frame, f // F_PAD, F_PAD, 1, TILE
    )
    basis_pool = form(
        pool, Matrices(video.basis_frame, 1, FRAMES, BASIS, F_PAD, K_PAD, True), num_videos, TILE
    )
    frame_form = form(
        pool, Matrices(video.frame_gram, 1, FRAMES, FRAMES, F_PAD, F_PAD, False), num_videos, TILE
    )
    squared_video = inner(pool, frame_form, TILE)
    scores = terms(pool, dot.frame, TILE)

    # The gap's attention over the frames, per head.
    r1 = tl.rsqrt(variance + TILE.GAP_EPS)
    offset = tl.load(video.key_offset + of_key * ATTENTION + k, mask=valid_key, other=0.0)
    bias = tl.load(video.key_bias + of_key * ATTENTION + k, mask=valid_key, other=0.0)
    gap_key = offset[None, :] - dot.key
    logits = bias[None, :] + gap_key * spread(r1, K_PAD, TILE)
    attention = masked_softmax(logits, 1.0, valid_key, k // FRAMES, K_PAD, TILE.HEADS, TILE)

    # Through LN2 and LN3, whose variances are quadratic forms.
    attention_form = form(
        attention,
        Matrices(video.value_gram, 1, ATTENTION, ATTENTION, K_PAD, K_PAD, False),
        num_videos,
        TILE,
    )
    r2 = tl.rsqrt(inner(attention, attention_form, TILE) + TILE.VALUE_EPS)
    constant = tl.where(k == ATTENTION, 1.0, 0.0).to(r2.dtype)
    hidden = attention * spread(r2, K_PAD, TILE) + constant[None, :]
    hidden_form = form(
        hidden,
        Matrices(video.hidden_gram, 1, HIDDEN, HIDDEN, K_PAD, K_PAD, False),
        num_videos,
        TILE,
    )
    r3 = tl.rsqrt(inner(hidden, hidden_form, TILE) + TILE.HIDDEN_EPS)
    last = tl.where(k == ATTENTION + 1, 1.0, 0.0).to(r3.dtype)
    coefficients = hidden * spread(r3, K_PAD, TILE) + last[None, :]
    basis_form = form(
        coefficients,
        Matrices(video.basis_gram, 1, BASIS, BASIS, K_PAD, K_PAD, False),
        num_videos,
        TILE,
    )
    squared_increment = inner(coefficients, basis_form, TILE)
    increment_norm = tl.sqrt(tl.where(squared_increment <= 0, 0.0, squared_increment))

    if K_PAD == F_PAD:
        score = total(scores + terms(coefficients, basis_pool, TILE), TILE)
    else:
        score = total(scores, TILE) + inner(coefficients, basis_pool, TILE)
    texts = tl.arange(0, TILE.BLOCK_A)
    squared_norm = tl.load(text.squared_norm + texts, mask=texts < num_texts, other=0.0)
    squared_text = squared_norm[:, None] + squared_increment
    squared_text += 2 * inner(coefficients, dot.basis, TILE)
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
