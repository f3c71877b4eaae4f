"""The statistics of all pairs that the streaming loss needs, in O(A + B·K²) memory and a workspace
of fixed size."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from garevla.kernels import configs
from garevla.kernels.configs import ROW_STATISTICS, LaunchConfig
from garevla.kernels.launching import launch
from garevla.kernels.pairs.arguments import PairArguments, check_statistics
from garevla.kernels.pairs.arithmetic import LOG2_E, pair_forward, products
from garevla.kernels.pairs.gram import Matrices, add_outer, blocks
from garevla.kernels.pairs.grid import launch_pairs, pair_grid
from garevla.kernels.pairs.tile import columns_of, recount, tile_texts, tile_videos, videos_of
from garevla.kernels.pairs.tuning import tuned
from garevla.kernels.rounding import rounded_product

# Below any logit, and finite: less itself it is 0.
LOWEST = tl.constexpr(-1e38)


@triton.jit(
    do_not_specialize=["num_texts", "num_videos", "segment_length", "first_video", "per_text"]
)
def pair_statistics_kernel(
    similarity,  # (b, A) out: of the b videos of this chunk
    increment_norm,  # (b, A) out
    column_top,  # (b, S) out: largest logit of a segment
    column_sum,  # (b, S) out: sum of exp(logit − top)
    mean,  # (b, S, K) out: mean coefficients of a segment
    remainder,  # (b, S, K) out: what rounding took from them
    scatter,  # (b, S, K, K) out: Σ (c − mean)(c − mean)ᵀ
    sampled,  # (A, n, K) out, or None
    samples,  # (A, n) int64, or None
    logit_scale,  # (1)
    text,  # Texts
    video,  # Videos
    num_texts,
    num_videos,  # where the chunk ends
    segment_length,
    first_video,  # of the chunk
    per_text,  # n
    TILE,
):
    """A program owns a group of videos and one segment of the texts: scores them tile by tile and
    keeps the videos' moments in registers; in memory, where they are more than those hold.

    Bytes and operations as in pair_scores_kernel, and 2·VIDEOS·K_PAD² operations a pair for the
    moments; out 8 bytes a pair into the workspace, and K + K² numbers a video and segment. One
    video a group in bfloat16: the L2 cache's 4.1 ms are the bound to meet.
    """
    tl.static_assert(TILE.GROUP == 1, "the statistics' tiles do not share their texts")
    BASIS: tl.constexpr = TILE.HEADS * TILE.FRAMES + 2
    COLUMNS: tl.constexpr = TILE.VIDEOS * TILE.K_PAD
    PARTS: tl.constexpr = TILE.BLOCK_A // 16
    WHOLE: tl.constexpr = COLUMNS <= TILE.GRAM_ROWS
    dtype = text.features.dtype.element_ty
    group_start = first_video + tl.program_id(0).to(tl.int64) * TILE.VIDEOS
    segment_start = tl.program_id(1).to(tl.int64) * segment_length
    group = tile_videos(video, group_start, TILE)
    videos_left = (num_videos - group_start).to(tl.int32)
    slot, exists = videos_of(videos_left, TILE)
    of_basis, k, basis_exists = columns_of(videos_left, TILE.K_PAD, TILE)
    texts = tl.arange(0, TILE.BLOCK_A)
    scale = tl.load(logit_scale)
    # Each place of a tile has its own logsumexp, and the moments' mean too where registers allow:
    # they are brought together once, at the end.
    top = tl.full((TILE.BLOCK_A, TILE.VIDEOS), LOWEST, dtype)
    sums = tl.zeros((TILE.BLOCK_A, TILE.VIDEOS), dtype)
    reference = tl.zeros((COLUMNS,), dtype)
    moved_sum = tl.zeros((TILE.BLOCK_A if WHOLE else 1, COLUMNS), dtype)
    parts = tl.num_programs(1)
    part = (group_start - first_video) * parts + tl.program_id(1)
    segment_scatter = scatter + part * (BASIS * BASIS)
    if WHOLE:
        moments = tl.zeros((PARTS, COLUMNS, COLUMNS), dtype)
    segment_end = min(segment_start + segment_length, num_texts)
    for tile_start in range(segment_start, segment_end, TILE.BLOCK_A):
        tile_text = tile_texts(text, tile_start, TILE)
        texts_left = (num_texts - tile_start).to(tl.int32)
        videos_here = recount(videos_left, texts_left)
        dot = products(tile_text, group, texts_left, videos_here, TILE)
        pairs = pair_forward(tile_text, group, texts_left, videos_here, dot, TILE)
        inside = (texts < texts_left)[:, None]
        at = (group_start - first_video) * num_texts + tile_start
        at += slot[None, :].to(tl.int64) * num_texts + texts[:, None]
        tl.store(similarity + at, pairs.similarity, mask=inside & exists[None, :])
        tl.store(increment_norm + at, pairs.increment_norm, mask=inside & exists[None, :])

        logits = tl.where(inside, pairs.similarity * scale, float("-inf"))
        above = logits - top
        less = tl.exp2(-tl.abs(above) * LOG2_E)
        sums = tl.where(above > 0, sums * less + 1, sums + less)
        top = tl.maximum(top, logits)

        coefficients = pairs.coefficients
        if samples is not None:
            for n in range(per_text):
                entries = tile_start * per_text + (texts * per_text + n)
                sample = tl.load(samples + entries, mask=texts < texts_left, other=-1)
                wanted = (sample - group_start).to(tl.int32)[:, None] == of_basis[None, :]
                tl.store(
                    sampled + entries[:, None] * BASIS + k[None, :],
                    coefficients,
                    mask=wanted & (basis_exists & (k < BASIS))[None, :],
                )

        if tile_start == segment_start:
            # Near the mean, so that nothing cancels; exactly their value if all are equal, so that
            # their variance is exactly 0.
            first_coefficients = tl.sum(tl.where((texts == 0)[:, None], coefficients, 0.0), 0)
            relative = tl.where(inside, coefficients - first_coefficients[None, :], 0.0)
            count = tl.minimum(texts_left, TILE.BLOCK_A).to(dtype)
            reference = first_coefficients + tl.sum(relative, 0) / count
        moved = tl.where(inside, coefficients - reference[None, :], 0.0)
        moved_sum += moved if WHOLE else tl.sum(moved, 0, keep_dims=True)
        if WHOLE:
            moved = tl.reshape(moved, (PARTS, 16, COLUMNS))
            moments = tl.dot(
                tl.permute(moved, (0, 2, 1)),
                moved,
                moments,
                input_precision=TILE.FORMS,
                out_dtype=dtype,
            )
        else:
            add_outer(
                Matrices(segment_scatter, parts, BASIS, BASIS, TILE.K_PAD, TILE.K_PAD, False),
                moved,
                moved,
                videos_here,
                TILE,
                tile_start > segment_start,
            )
            # The next tile may read of the sums what another thread has written.
            tl.debug_barrier()
    count = tl.minimum(segment_length, num_texts - segment_start).to(dtype)
    moved_sum = tl.sum(moved_sum, 0)
    moved_mean = moved_sum / count
    highest = tl.max(top, 0)
    sums = rounded_product(sums, tl.exp2((top - highest[None, :]) * LOG2_E))
    tl.store(column_top + part + slot * parts, highest, mask=exists)
    tl.store(column_sum + part + slot * parts, tl.sum(sums, 0), mask=exists)
    inside = basis_exists & (k < BASIS)
    at_mean = part * BASIS + (of_basis * parts * BASIS + k)
    rounded = reference + moved_mean
    tl.store(mean + at_mean, rounded, mask=inside)
    tl.store(remainder + at_mean, moved_mean - (rounded - reference), mask=inside)
    COUNT: tl.constexpr = min(COLUMNS, TILE.GRAM_ROWS)
    for start in tl.range(0, COLUMNS, COUNT, num_stages=1):
        at_rows, block = blocks(
            Matrices(segment_scatter, parts, BASIS, BASIS, TILE.K_PAD, TILE.K_PAD, False),
            videos_left,
            start,
            COUNT,
            TILE,
        )
        block &= basis_exists[None, :]
        if WHOLE:
            scatter_sum = tl.sum(moments, 0) - moved_sum[:, None] * moved_mean[None, :]
        else:
            row_sum = tl.gather(moved_sum, start + tl.arange(0, COUNT), 0)
            scatter_sum = tl.load(at_rows, mask=block, other=0.0)
            scatter_sum -= row_sum[:, None] * moved_mean[None, :]
        tl.store(at_rows, scatter_sum, mask=block)


@triton.jit(do_not_specialize=["num_texts", "num_videos", "seen"])
def row_statistics_kernel(
    row_top,  # (A) in and out: largest logit so far
    row_sum,  # (A) in and out: sum of exp(logit − top)
    norm_mean,  # (A) in and out: mean of ‖Δ‖
    norm_scatter,  # (A) in and out: Σ (‖Δ‖ − mean)²
    similarity,  # (b, A)
    increment_norm,  # (b, A)
    logit_scale,  # (1)
    num_texts,
    num_videos,  # b
    seen,  # videos before this chunk
    BLOCK_A: tl.constexpr,
    BLOCK_B: tl.constexpr,
):
    """Takes a chunk of videos into the texts' running statistics.

    Reads 2·b·A numbers, hardly any arithmetic: bound by memory, mostly by the L2 cache.
    """
    texts = tl.program_id(0).to(tl.int64) * BLOCK_A + tl.arange(0, BLOCK_A)
    inside = texts < num_texts
    scale = tl.load(logit_scale)
    top = tl.load(row_top + texts, mask=inside, other=0.0)
    total = tl.load(row_sum + texts, mask=inside, other=0.0)
    mean = tl.load(norm_mean + texts, mask=inside, other=0.0)
    scatter = tl.load(norm_scatter + texts, mask=inside, other=0.0)
    for first in range(0, num_videos, BLOCK_B):
        videos = first + tl.arange(0, BLOCK_B).to(tl.int64)
        valid = (videos < num_videos)[:, None] & inside[None, :]
        at = videos[:, None] * num_texts + texts[None, :]
        logits = tl.load(similarity + at, mask=valid, other=0.0) * scale
        logits = tl.where((videos < num_videos)[:, None], logits, float("-inf"))
        new_top = tl.maximum(top, tl.max(logits, 0))
        total = total * tl.exp(top - new_top) + tl.sum(tl.exp(logits - new_top[None, :]), 0)
        top = new_top

        norm = tl.load(increment_norm + at, mask=valid, other=0.0)
        count = tl.minimum(num_videos - first, BLOCK_B).to(norm.dtype)
        before = (seen + first).to(norm.dtype)
        tile_mean = tl.sum(norm, 0) / count
        centered = tl.where(valid, norm - tile_mean[None, :], 0.0)
        moved = tile_mean - mean
        scatter += tl.sum(rounded_product(centered, centered), 0)
        scatter += moved * moved * (before * count / (before + count))
        mean += moved * (count / (before + count))
    tl.store(row_top + texts, top, mask=inside)
    tl.store(row_sum + texts, total, mask=inside)
    tl.store(norm_mean + texts, mean, mask=inside)
    tl.store(norm_scatter + texts, scatter, mask=inside)


def pair_statistics(
    arguments: PairArguments, logit_scale: Tensor, targets: Tensor, samples: Tensor | None
) -> tuple[Tensor, ...]:
    """Row and column logsumexp, target similarity, mean and variance of ‖Δ‖ over the videos, mean
    and covariance of the coefficients over the texts, sampled coefficients (or an empty tensor),
    and what rounding took from the coefficients' mean."""
    texts, videos, basis = arguments.num_texts, arguments.num_videos, arguments.basis
    logit_scale, targets, samples = check_statistics(arguments, logit_scale, targets, samples)
    per_text = 0 if samples is None else samples.shape[1]
    row_top = arguments.empty(texts).fill_(-torch.inf)
    # Each by itself: kernels are compiled once more for tensors that are not aligned.
    row_sum, norm_mean, norm_scatter, target_similarity = (
        arguments.empty(texts).zero_() for _ in range(4)
    )
    column_logsumexp = arguments.empty(videos)
    mean, mean_remainder = (arguments.empty(videos, basis) for _ in range(2))
    covariance = arguments.empty(videos, basis, basis)
    sampled = arguments.empty(texts if samples is not None else 0, per_text, basis)
    chunk = min(videos, max(1, configs.FORWARD_PAIRS // texts))
    similarity, norm = (arguments.empty(chunk, texts) for _ in range(2))

    def score(config: LaunchConfig, start: int, stop: int) -> tuple[Tensor, ...]:
        size = stop - start
        grid = pair_grid(size, texts, config)
        column_top, column_sum, part_mean, part_remainder, part_scatter = (
            arguments.empty(size, grid.segments, *shape)
            for shape in ((), (), (basis,), (basis,), (basis, basis))
        )
        launch_pairs(
            pair_statistics_kernel,
            arguments,
            config,
            grid,
            num_videos=stop,
            similarity=similarity,
            increment_norm=norm,
            column_top=column_top,
            column_sum=column_sum,
            mean=part_mean,
            remainder=part_remainder,
            scatter=part_scatter,
            sampled=None if samples is None else sampled,
            samples=samples,
            logit_scale=logit_scale,
            first_video=start,
            per_text=per_text,
        )
        parts = part_mean, part_remainder, part_scatter
        moments = merged_moments(*parts, grid.segment_length, texts)
        return (column_top + column_sum.log()).logsumexp(1), *moments

    config = tuned(arguments, "statistics", lambda c: score(c, 0, chunk), key="pair_statistics")
    for start in range(0, videos, chunk):
        stop = min(start + chunk, videos)
        here = slice(start, stop)
        column_logsumexp[here], mean[here], mean_remainder[here], covariance[here] = score(
            config, start, stop
        )
        launch(
            row_statistics_kernel,
            (triton.cdiv(texts, ROW_STATISTICS.rows),),
            **ROW_STATISTICS.options(),
            row_top=row_top,
            row_sum=row_sum,
            norm_mean=norm_mean,
            norm_scatter=norm_scatter,
            similarity=similarity,
            increment_norm=norm,
            logit_scale=logit_scale,
            num_texts=texts,
            num_videos=stop - start,
            seen=start,
            BLOCK_A=ROW_STATISTICS.rows,
            BLOCK_B=ROW_STATISTICS.columns,
        )
        in_chunk = (targets >= start) & (targets < stop)
        row = (targets - start).clamp(0, stop - start - 1).unsqueeze(0)
        of_target = similarity.gather(0, row).squeeze(0)
        target_similarity = torch.where(in_chunk, of_target, target_similarity)
    return (
        row_top + row_sum.log(),
        column_logsumexp,
        target_similarity,
        norm_mean.clone(),
        norm_scatter / max(videos - 1, 1),
        mean,
        covariance,
        sampled,
        mean_remainder,
    )


def merged_moments(
    mean: Tensor, remainder: Tensor, scatter: Tensor, length: int, num_texts: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (b, K), what rounding takes from it, and unbiased covariance (b, K, K), from those of
    segments of ``length`` texts.

    Args:
        mean: (b, S, K).
        remainder: (b, S, K), to be added to it.
        scatter: (b, S, K, K) sums of squares about a segment's own mean.
    """
    parts = mean.shape[1]
    counts = [min(length, num_texts - part * length) for part in range(parts)]
    # A constant made on the device: copying one there would wait for it.
    weights = mean.new_full((parts, 1), length / num_texts)
    weights[-1] = counts[-1] / num_texts
    relative = ((mean - mean[:, :1] + remainder) * weights).sum(1)
    whole = mean[:, 0] + relative
    moved = mean - whole.unsqueeze(1)
    between = moved.mT.double() @ (moved * (weights * num_texts)).double()
    covariance = (scatter.sum(1) + between.to(scatter.dtype)) / max(num_texts - 1, 1)
    return whole, relative - (whole - mean[:, 0]), covariance
