"""The kernel of the backward pass: a tile of pairs once more, and its adjoint."""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from garevla.kernels.pairs.adjoint import (
    coefficients_adjoint,
    cosine_adjoint,
    increment_adjoint,
    pool_adjoint,
)
from garevla.kernels.pairs.arithmetic import pair_forward, products
from garevla.kernels.pairs.gradients import (
    coefficient_gradients,
    load_coefficients,
    load_pairs,
    similarity_gradients,
)
from garevla.kernels.pairs.gram import accumulate, store_sums, zero_sums
from garevla.kernels.pairs.tile import (
    columns_of,
    recount,
    spread,
    tile_texts,
    tile_videos,
    videos_of,
)
from garevla.kernels.rounding import rounded_product


class FactorGradients(NamedTuple):
    """Gradients of the videos' factors, summed over a segment of the texts."""

    key_offset: Tensor  # (b, S, H·F)
    key_bias: Tensor  # (b, S, H·F)
    value_gram: Tensor  # (b, S, H·F, H·F)
    hidden_gram: Tensor  # (b, S, H·F+1, H·F+1)
    basis_gram: Tensor  # (b, S, K, K)
    frame_gram: Tensor  # (b, S, F, F)
    basis_frame: Tensor  # (b, S, K, F)


@triton.jit
def program_sums(sums, part, TILE):
    """The sums of a program's first video from its segment, int64, on."""
    HF: tl.constexpr = TILE.HEADS * TILE.FRAMES
    F: tl.constexpr = TILE.FRAMES
    return FactorGradients(
        sums.key_offset + part * HF,
        sums.key_bias + part * HF,
        sums.value_gram + part * (HF * HF),
        sums.hidden_gram + part * ((HF + 1) * (HF + 1)),
        sums.basis_gram + part * ((HF + 2) * (HF + 2)),
        sums.frame_gram + part * (F * F),
        sums.basis_frame + part * ((HF + 2) * F),
    )


@triton.jit(
    do_not_specialize=[
        "num_texts",
        "num_videos",
        "pair_stride",
        "segment_length",
        "first_video",
        "per_text",
    ]
)
def pair_adjoint_kernel(
    grad_products,  # (b, R, a) out: of the products of the b videos and a texts of this chunk
    grad_gap_variance,  # (b, a) out
    grad_squared_norm,  # (b, a) out
    sums,  # FactorGradients out
    part_scale,  # (groups, S) out: of logit_scale, or None: with of_statistics alone
    of_pairs,  # PairGradients
    of_statistics,  # StatisticsGradients, or None
    text,  # Texts, a of them
    video,  # Videos
    num_texts,  # a
    num_videos,  # where the chunk ends
    pair_stride,  # A
    segment_length,
    first_video,  # of the chunk
    per_text,  # n
    TILE,
):
    """A program owns a group of videos and one segment of the texts: recomputes them tile by tile,
    applies the adjoint, and sums what belongs to the videos.

    Reads what pair_scores_kernel reads; writes R + 2 numbers a pair into the workspace, of which
    the two products read R once more each (at F = 12 in float32 160 and 304 bytes, 84 and 152
    in bfloat16). Per pair the forward operations again and some 22·K_PAD² for the adjoint and the
    Gram matrices' gradients. On an H200 at A = B = 4096 in bfloat16 the L2 cache and the number of
    instructions allow 5 ms, the two products 1.7 ms more.
    """
    tl.static_assert(TILE.GROUP == 1, "the adjoint's tiles do not share their texts")
    F: tl.constexpr = TILE.FRAMES
    HF: tl.constexpr = TILE.HEADS * F
    K: tl.constexpr = HF + 2
    ROWS: tl.constexpr = HF + F + K
    K_PAD: tl.constexpr = TILE.K_PAD
    F_PAD: tl.constexpr = TILE.F_PAD
    dtype = text.features.dtype.element_ty
    low = grad_products.dtype.element_ty
    group_start = first_video + tl.program_id(0).to(tl.int64) * TILE.VIDEOS
    segment_start = tl.program_id(1).to(tl.int64) * segment_length
    parts = tl.num_programs(1)
    part = (group_start - first_video) * parts + tl.program_id(1)
    group = tile_videos(video, group_start, TILE)
    videos_left = (num_videos - group_start).to(tl.int32)
    texts = tl.arange(0, TILE.BLOCK_A)[:, None]
    KEYS: tl.constexpr = TILE.VIDEOS * K_PAD
    POOL: tl.constexpr = TILE.VIDEOS * F_PAD
    sum_scale = tl.zeros((TILE.BLOCK_A, TILE.VIDEOS), dtype)
    sum_offset = tl.zeros((TILE.BLOCK_A, KEYS), dtype)
    sum_bias = tl.zeros((TILE.BLOCK_A, KEYS), dtype)
    sum_frame = zero_sums(POOL, POOL, dtype, TILE)
    sum_basis_frame = zero_sums(KEYS, POOL, dtype, TILE)
    sum_basis = zero_sums(KEYS, KEYS, dtype, TILE)
    sum_hidden = zero_sums(KEYS, KEYS, dtype, TILE)
    sum_value = zero_sums(KEYS, KEYS, dtype, TILE)
    here = program_sums(sums, part, TILE)
    segment_end = min(segment_start + segment_length, num_texts)
    for tile_start in range(segment_start, segment_end, TILE.BLOCK_A):
        tile_text = tile_texts(text, tile_start, TILE)
        texts_left = (num_texts - tile_start).to(tl.int32)
        videos_here = recount(videos_left, texts_left)
        dot = products(tile_text, group, texts_left, videos_here, TILE)
        pairs = pair_forward(tile_text, group, texts_left, videos_here, dot, TILE)
        inside = texts < texts_left
        keep = tile_start > segment_start

        if part_scale is not None:
            grad_similarity, grad_norm, of_scale = similarity_gradients(
                of_statistics, pairs, tile_start, texts_left, group_start, videos_here, TILE
            )
            sum_scale += of_scale
        else:
            similarity, norm = of_pairs.similarity, of_pairs.norm
            grad_similarity = load_pairs(
                similarity,
                pair_stride,
                tile_start,
                texts_left,
                group_start,
                videos_here,
                dtype,
                TILE,
            )
            grad_norm = load_pairs(
                norm, pair_stride, tile_start, texts_left, group_start, videos_here, dtype, TILE
            )
        cosine = cosine_adjoint(grad_similarity, grad_norm, pairs, TILE)
        # In this order: what is not needed any more leaves its registers early.
        grad_coefficients = coefficients_adjoint(cosine, dot.basis, pairs, TILE)

        grad_frame = pool_adjoint(cosine, dot.frame, pairs, group, videos_here, TILE)
        tile_products = grad_products + (group_start - first_video) * ROWS * num_texts + tile_start
        of_frame, f, frame_exists = columns_of(videos_here, F_PAD, TILE)
        at = (of_frame * ROWS + HF + f)[None, :] * num_texts + texts
        mask = inside & (frame_exists & (f < F))[None, :]
        tl.store(tile_products + at, grad_frame.to(low), mask=mask)
        sum_frame = accumulate(
            sum_frame,
            here.frame_gram,
            cosine.video,
            pairs.pool,
            pairs.pool,
            F,
            F,
            parts,
            videos_here,
            TILE,
            keep,
        )
        sum_basis_frame = accumulate(
            sum_basis_frame,
            here.basis_frame,
            cosine.score,
            pairs.coefficients,
            pairs.pool,
            K,
            F,
            parts,
            videos_here,
            TILE,
            keep,
        )

        if part_scale is not None:
            grad_coefficients += coefficient_gradients(
                of_statistics,
                pairs.coefficients,
                tile_start,
                texts_left,
                group_start,
                videos_here,
                per_text,
                TILE,
            )
        else:
            grad_coefficients += load_coefficients(
                of_pairs.coefficients,
                pair_stride,
                tile_start,
                texts_left,
                group_start,
                videos_here,
                dtype,
                TILE,
            )
        grad = increment_adjoint(grad_coefficients, pairs, videos_here, TILE)
        sum_basis = accumulate(
            sum_basis,
            here.basis_gram,
            cosine.increment,
            pairs.coefficients,
            pairs.coefficients,
            K,
            K,
            parts,
            videos_here,
            TILE,
            keep,
        )
        sum_hidden = accumulate(
            sum_hidden,
            here.hidden_gram,
            grad.hidden_weight,
            pairs.hidden,
            pairs.hidden,
            HF + 1,
            HF + 1,
            parts,
            videos_here,
            TILE,
            keep,
        )
        sum_value = accumulate(
            sum_value,
            here.value_gram,
            grad.value_weight,
            pairs.attention,
            pairs.attention,
            HF,
            HF,
            parts,
            videos_here,
            TILE,
            keep,
        )

        of_key, k, key_exists = columns_of(videos_here, K_PAD, TILE)
        at = (of_key * ROWS + k)[None, :] * num_texts + texts
        mask = inside & (key_exists & (k < HF))[None, :]
        grad_key = rounded_product(grad.attention_logits, spread(-pairs.r1, K_PAD, TILE))
        tl.store(tile_products + at, grad_key.to(low), mask=mask)
        mask = inside & (key_exists & (k < K))[None, :]
        at += (HF + F) * num_texts
        grad_basis = spread(2 * cosine.text, K_PAD, TILE) * pairs.coefficients
        tl.store(tile_products + at, grad_basis.to(low), mask=mask)
        sum_offset -= grad_key
        sum_bias += grad.attention_logits

        slot, exists = videos_of(videos_here, TILE)
        at = (
            (group_start - first_video) * num_texts
            + tile_start
            + (slot[None, :] * num_texts + texts)
        )
        tl.store(grad_gap_variance + at, grad.gap_variance, mask=inside & exists[None, :])
        tl.store(grad_squared_norm + at, cosine.text, mask=inside & exists[None, :])
        if not TILE.SUMS_HELD:
            # The next tile may read of the sums what another thread has written.
            tl.debug_barrier()
    of_key, k, key_exists = columns_of(videos_left, K_PAD, TILE)
    at_key = of_key * parts * HF + k
    mask = key_exists & (k < HF)
    tl.store(here.key_offset + at_key, tl.sum(sum_offset, 0), mask=mask)
    tl.store(here.key_bias + at_key, tl.sum(sum_bias, 0), mask=mask)
    store_sums(sum_frame, here.frame_gram, F, F, parts, videos_left, TILE)
    store_sums(sum_basis_frame, here.basis_frame, K, F, parts, videos_left, TILE)
    store_sums(sum_basis, here.basis_gram, K, K, parts, videos_left, TILE)
    store_sums(sum_hidden, here.hidden_gram, HF + 1, HF + 1, parts, videos_left, TILE)
    store_sums(sum_value, here.value_gram, HF, HF, parts, videos_left, TILE)
    if part_scale is not None:
        sum_scale = tl.sum(tl.reshape(sum_scale, (TILE.BLOCK_A * TILE.VIDEOS,)), 0)
        tl.store(part_scale + tl.program_id(0) * parts + tl.program_id(1), sum_scale)
