"""The statistics of all pairs that the streaming loss needs, in O(A + B·K²) memory and a workspace
of fixed size."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from garevla.kernels.configs import FORWARD_WORKSPACE, TileConfig
from garevla.kernels.launching import launch
from garevla.kernels.pairs.arguments import PairArguments, segments, tuned
from garevla.kernels.pairs.arithmetic import (
    blocks,
    columns_of,
    pair_forward,
    products,
    recount,
    tile_texts,
    tile_videos,
    videos_of,
)


@triton.jit(
    do_not_specialize=["num_texts", "num_videos", "segment_length", "first_video", "per_text"]
)
def pair_statistics_kernel(
    similarity,  # (b, A) out: of the b videos of this chunk
    increment_norm,  # (b, A) out
    column_top,  # (b, S) out: largest logit of a segment
    column_sum,  # (b, S) out: sum of exp(logit − top)
    mean,  # (b, S, K) out: mean coefficients of a segment
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
    keeps the videos' moments in registers.

    Bytes and operations as in pair_scores_kernel, and 2·VIDEOS·K_PAD² operations a pair for the
    moments; out 8 bytes a pair into the workspace, and K + K² numbers a video and segment. One
    video a group in bfloat16: the L2 cache's 4.1 ms are the bound to meet. Not yet measured.

    Compiled for sm_90 at D = 512, F = 12 (shared memory, registers a thread; no spills): 44 KB, 238
    in bfloat16; 5 KB, 207 in float32.
    """
    BASIS: tl.constexpr = TILE.HEADS * TILE.FRAMES + 2
    COLUMNS: tl.constexpr = TILE.VIDEOS * TILE.K_PAD
    PARTS: tl.constexpr = TILE.BLOCK_A // 16
    dtype = text.features.dtype.element_ty
    first = first_video + tl.program_id(0).to(tl.int64) * TILE.VIDEOS
    start = tl.program_id(1).to(tl.int64) * segment_length
    own = tile_videos(video, first, TILE)
    videos_left = (num_videos - first).to(tl.int32)
    slot, exists = videos_of(videos_left, TILE)
    of_basis, k, basis_exists = columns_of(videos_left, TILE.K_PAD, TILE)
    texts = tl.arange(0, TILE.BLOCK_A)
    scale = tl.load(logit_scale)
    top = tl.full((TILE.VIDEOS,), float("-inf"), dtype)
    sums = tl.zeros((TILE.VIDEOS,), dtype)
    reference = tl.zeros((COLUMNS,), dtype)
    moved_sum = tl.zeros((COLUMNS,), dtype)
    moments = tl.zeros((PARTS, COLUMNS, COLUMNS), dtype)
    for tile in range(start, min(start + segment_length, num_texts), TILE.BLOCK_A):
        tiled = tile_texts(text, tile, TILE)
        left = (num_texts - tile).to(tl.int32)
        videos_here = recount(videos_left, left)
        dot = products(tiled, own, left, videos_here, TILE)
        pairs = pair_forward(tiled, own, left, videos_here, dot, TILE)
        inside = (texts < left)[:, None]
        at = (first - first_video) * num_texts + tile
        at += slot[None, :].to(tl.int64) * num_texts + texts[:, None]
        tl.store(similarity + at, pairs.similarity, mask=inside & exists[None, :])
        tl.store(increment_norm + at, pairs.increment_norm, mask=inside & exists[None, :])

        logits = tl.where(inside, pairs.similarity * scale, float("-inf"))
        new_top = tl.maximum(top, tl.max(logits, 0))
        sums = sums * tl.exp(top - new_top) + tl.sum(tl.exp(logits - new_top[None, :]), 0)
        top = new_top

        coefficients = pairs.coefficients
        if samples is not None:
            for n in range(per_text):
                entries = tile * per_text + (texts * per_text + n)
                sample = tl.load(samples + entries, mask=texts < left, other=-1)
                wanted = (sample - first).to(tl.int32)[:, None] == of_basis[None, :]
                tl.store(
                    sampled + entries[:, None] * BASIS + k[None, :],
                    coefficients,
                    mask=wanted & (basis_exists & (k < BASIS))[None, :],
                )

        if tile == start:
            # Near the mean, so that nothing cancels; exactly their value if all are equal, so that
            # their variance is exactly 0.
            first_text = tl.sum(tl.where((texts == 0)[:, None], coefficients, 0.0), 0)
            relative = tl.where(inside, coefficients - first_text[None, :], 0.0)
            count = tl.minimum(left, TILE.BLOCK_A).to(dtype)
            reference = first_text + tl.sum(relative, 0) / count
        moved = tl.where(inside, coefficients - reference[None, :], 0.0)
        moved_sum += tl.sum(moved, 0)
        moved = tl.reshape(moved, (PARTS, 16, COLUMNS))
        moments = tl.dot(
            tl.permute(moved, (0, 2, 1)),
            moved,
            moments,
            input_precision=TILE.FORMS,
            out_dtype=dtype,
        )
    count = tl.minimum(segment_length, num_texts - start).to(dtype)
    moved_mean = moved_sum / count
    scatter_sum = tl.sum(moments, 0) - moved_sum[:, None] * moved_mean[None, :]
    parts = tl.num_programs(1)
    part = (first - first_video) * parts + tl.program_id(1)
    tl.store(column_top + part + slot * parts, top, mask=exists)
    tl.store(column_sum + part + slot * parts, sums, mask=exists)
    inside = basis_exists & (k < BASIS)
    at = of_basis * parts * BASIS + k
    tl.store(mean + part * BASIS + at, reference + moved_mean, mask=inside)
    at, block = blocks(
        scatter + part * (BASIS * BASIS),
        parts,
        videos_left,
        TILE.K_PAD,
        BASIS,
        TILE.K_PAD,
        BASIS,
        TILE,
    )
    tl.store(at, scatter_sum, mask=block & basis_exists[:, None])


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
        centred = tl.where(valid, norm - tile_mean[None, :], 0.0)
        moved = tile_mean - mean
        scatter += tl.sum(centred * centred, 0)
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
    and covariance of the coefficients over the texts, sampled coefficients (or an empty tensor)."""
    texts, videos, basis = arguments.num_texts, arguments.num_videos, arguments.basis
    logit_scale, targets, samples = checked(arguments, logit_scale, targets, samples)
    per_text = 0 if samples is None else samples.shape[1]
    row_top = arguments.empty(texts).fill_(-torch.inf)
    # Each by itself: kernels are compiled once more for tensors that are not aligned.
    row_sum, norm_mean, norm_scatter, target_similarity = (
        arguments.empty(texts).zero_() for _ in range(4)
    )
    column_logsumexp = arguments.empty(videos)
    mean = arguments.empty(videos, basis)
    covariance = arguments.empty(videos, basis, basis)
    sampled = arguments.empty(texts if samples is not None else 0, per_text, basis)
    chunk = min(videos, max(1, FORWARD_WORKSPACE // texts))
    similarity, norm = (arguments.empty(chunk, texts) for _ in range(2))

    def score(config: TileConfig, start: int, stop: int) -> tuple[Tensor, ...]:
        size = stop - start
        count, length = segments(size, texts, config)
        parts = [
            arguments.empty(size, count, *shape) for shape in ((), (), (basis,), (basis, basis))
        ]
        launch(
            pair_statistics_kernel,
            (triton.cdiv(size, config.videos), count),
            **config.options(),
            similarity=similarity,
            increment_norm=norm,
            column_top=parts[0],
            column_sum=parts[1],
            mean=parts[2],
            scatter=parts[3],
            sampled=None if samples is None else sampled,
            samples=samples,
            logit_scale=logit_scale,
            text=arguments.texts,
            video=arguments.videos,
            num_texts=texts,
            num_videos=stop,
            segment_length=length,
            first_video=start,
            per_text=per_text,
            TILE=arguments.tile(config),
        )
        return length, *parts

    config = tuned(arguments, "statistics", lambda c: score(c, 0, chunk), key="pair_statistics")
    for start in range(0, videos, chunk):
        stop = min(start + chunk, videos)
        length, top, total, part_mean, part_scatter = score(config, start, stop)
        column_logsumexp[start:stop] = (top + total.log()).logsumexp(1)
        mean[start:stop], covariance[start:stop] = merged_moments(
            part_mean, part_scatter, length, texts
        )
        launch(
            row_statistics_kernel,
            (triton.cdiv(texts, 64),),
            num_warps=4,
            num_stages=1,
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
            BLOCK_A=64,
            BLOCK_B=16,
        )
        here = (targets >= start) & (targets < stop)
        own = (targets - start).clamp(0, stop - start - 1).unsqueeze(0)
        found = similarity.gather(0, own).squeeze(0)
        target_similarity = torch.where(here, found, target_similarity)
    return (
        row_top + row_sum.log(),
        column_logsumexp,
        target_similarity,
        norm_mean.clone(),
        norm_scatter / max(videos - 1, 1),
        mean,
        covariance,
        sampled,
    )


def merged_moments(
    mean: Tensor, scatter: Tensor, length: int, num_texts: int
) -> tuple[Tensor, Tensor]:
    """Mean (b, K) and unbiased covariance (b, K, K) from those of segments of ``length`` texts.

    Args:
        mean: (b, S, K).
        scatter: (b, S, K, K) sums of squares about a segment's own mean.
    """
    parts = mean.shape[1]
    counts = [min(length, num_texts - part * length) for part in range(parts)]
    # A constant made on the device: copying one there would wait for it.
    weights = mean.new_full((parts, 1), length / num_texts)
    weights[-1] = counts[-1] / num_texts
    whole = mean[:, 0] + ((mean - mean[:, :1]) * weights).sum(1)
    moved = mean - whole.unsqueeze(1)
    between = moved.mT.double() @ (moved * (weights * num_texts)).double()
    covariance = (scatter.sum(1) + between.to(scatter.dtype)) / max(num_texts - 1, 1)
    return whole, covariance


def checked(
    arguments: PairArguments, logit_scale: Tensor, targets: Tensor, samples: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The statistics' further arguments, contiguous and of the texts' type."""
    if logit_scale.numel() != 1:
        raise ValueError(f"logit_scale must be one number, got shape {tuple(logit_scale.shape)}")
    texts = arguments.num_texts
    logit_scale = logit_scale.to(arguments.text).reshape(1)
    targets = arguments.check("targets", targets, (texts,), torch.int64)
    if samples is not None:
        if samples.dim() != 2:
            raise ValueError(f"samples must have shape (A, n), got {tuple(samples.shape)}")
        shape = (texts, samples.shape[1])
        samples = arguments.check("samples", samples, shape, torch.int64)
    for name, videos in (("targets", targets), ("samples", samples)):
        if videos is not None and videos.numel() > 0:
            fits = (videos >= 0) & (videos < arguments.num_videos)
            # Does not wait for the device; a wrong index would read nothing but leave garbage.
            torch._assert_async(fits.all(), f"{name} must be in [0, {arguments.num_videos})")
    return logit_scale, targets, samples
