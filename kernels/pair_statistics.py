"""The statistics of all pairs that the streaming loss needs, in O(A + B·K²) memory and a workspace
of fixed size."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from garevla.kernels.arguments import PairArguments, launch, segments, tuned
from garevla.kernels.arithmetic import matmul, score_tile, store_matrix
from garevla.kernels.configs import FORWARD_WORKSPACE, TileConfig


@triton.jit(do_not_specialize=["num_texts", "segment_length", "first_video", "per_text"])
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
    text,  # (A, D)
    text_mean,  # (A)
    squared_norm,  # (A)
    rows,  # (B, R, D)
    frame_mask,  # (B, F)
    key_offset,  # (B, H·F)
    key_bias,  # (B, H·F)
    mean_frame,  # (B, D)
    value_gram,  # (B, H·F, H·F)
    hidden_gram,  # (B, H·F+1, H·F+1)
    basis_gram,  # (B, K, K)
    frame_gram,  # (B, F, F)
    basis_frame,  # (B, K, F)
    num_texts,
    segment_length,
    first_video,  # of the chunk
    per_text,  # n
    DIM: tl.constexpr,
    HEADS: tl.constexpr,
    FRAMES: tl.constexpr,
    GAP_EPS: tl.constexpr,
    VALUE_EPS: tl.constexpr,
    HIDDEN_EPS: tl.constexpr,
    TEMPERATURE: tl.constexpr,
    TINY: tl.constexpr,
    BLOCK_A: tl.constexpr,
    BLOCK_D: tl.constexpr,
    K_PAD: tl.constexpr,
    F_PAD: tl.constexpr,
    PRODUCT_PRECISION: tl.constexpr,
    GRAM_PRECISION: tl.constexpr,
):
    """A program owns one video and one segment of the texts: scores them tile by tile and keeps the
    video's moments in registers.

    Bytes and operations as in pair_scores_kernel, and 2·K_PAD² operations a pair for the moments;
    out 8 bytes a pair into the workspace, and K + K² numbers a video and segment. The same bound.

    Compiled for sm_90 at D = 512, F = 12: 5 KB of shared memory and 190 registers in float32, 18 KB
    and 246 in tf32x3, 30 KB and 218 in bfloat16; no spills.
    """
    local = tl.program_id(0).to(tl.int64)
    video = first_video + local
    part = local * tl.num_programs(1) + tl.program_id(1)
    BASIS: tl.constexpr = HEADS * FRAMES + 2
    dtype = text.dtype.element_ty
    start = tl.program_id(1).to(tl.int64) * segment_length
    k = tl.arange(0, K_PAD)
    scale = tl.load(logit_scale)
    top = tl.full((), float("-inf"), dtype)
    total = tl.zeros((), dtype)
    # Relative to the segment's first text, so that equal coefficients have variance 0 exactly.
    reference = tl.zeros((K_PAD,), dtype)
    relative_mean = tl.zeros((K_PAD,), dtype)
    moments = tl.zeros((K_PAD, K_PAD), dtype)
    for first in range(start, min(start + segment_length, num_texts), BLOCK_A):
        texts = first + tl.arange(0, BLOCK_A).to(tl.int64)
        inside = texts < num_texts
        _, _, state = score_tile(
            texts,
            num_texts,
            video,
            text,
            text_mean,
            squared_norm,
            rows,
            frame_mask,
            key_offset,
            key_bias,
            mean_frame,
            value_gram,
            hidden_gram,
            basis_gram,
            frame_gram,
            basis_frame,
            DIM,
            HEADS,
            FRAMES,
            GAP_EPS,
            VALUE_EPS,
            HIDDEN_EPS,
            TEMPERATURE,
            TINY,
            BLOCK_A,
            BLOCK_D,
            K_PAD,
            F_PAD,
            PRODUCT_PRECISION,
            GRAM_PRECISION,
        )
        tl.store(similarity + local * num_texts + texts, state[0], mask=inside)
        tl.store(increment_norm + local * num_texts + texts, state[1], mask=inside)

        logits = tl.where(inside, state[0] * scale, float("-inf"))
        new_top = tl.maximum(top, tl.max(logits, 0))
        total = total * tl.exp(top - new_top) + tl.sum(tl.exp(logits - new_top), 0)
        top = new_top

        coefficients = state[2]
        if samples is not None:
            for n in range(per_text):
                entries = texts * per_text + n
                wanted = inside & (tl.load(samples + entries, mask=inside, other=-1) == video)
                tl.store(
                    sampled + entries[:, None] * BASIS + k[None, :],
                    coefficients,
                    mask=wanted[:, None] & (k < BASIS)[None, :],
                )

        of_first = tl.where((texts == first)[:, None], coefficients, 0.0)
        reference = tl.where(first == start, tl.sum(of_first, 0), reference)
        before = (first - start).to(dtype)
        count = tl.minimum(num_texts - first, BLOCK_A).to(dtype)
        relative = tl.where(inside[:, None], coefficients - reference[None, :], 0.0)
        tile_mean = tl.sum(relative, 0) / count
        centred = tl.where(inside[:, None], relative - tile_mean[None, :], 0.0)
        moments += matmul(tl.trans(centred), centred, GRAM_PRECISION)
        moved = tile_mean - relative_mean
        weight = before * count / (before + count)
        moments += moved[:, None] * (moved[None, :] * weight)
        relative_mean += moved * (count / (before + count))
    tl.store(column_top + part, top)
    tl.store(column_sum + part, total)
    tl.store(mean + part * BASIS + k, reference + relative_mean, mask=k < BASIS)
    store_matrix(scatter + part * BASIS * BASIS, k, BASIS, k, BASIS, moments)


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
    row_sum, norm_mean, norm_scatter, target_similarity = arguments.empty(4, texts).zero_()
    column_logsumexp = arguments.empty(videos)
    mean = arguments.empty(videos, basis)
    covariance = arguments.empty(videos, basis, basis)
    sampled = arguments.empty(texts if samples is not None else 0, per_text, basis)
    chunk = min(videos, max(1, FORWARD_WORKSPACE // texts))
    similarity, norm = arguments.empty(2, chunk, texts)

    def score(config: TileConfig, start: int, stop: int) -> tuple[Tensor, ...]:
        size = stop - start
        count, length = segments(size, texts, config.block_a)
        parts = [
            arguments.empty(size, count, *shape) for shape in ((), (), (basis,), (basis, basis))
        ]
        launch(
            pair_statistics_kernel,
            (size, count),
            config,
            similarity=similarity,
            increment_norm=norm,
            column_top=parts[0],
            column_sum=parts[1],
            mean=parts[2],
            scatter=parts[3],
            sampled=None if samples is None else sampled,
            samples=samples,
            logit_scale=logit_scale,
            **arguments.operands(),
            segment_length=length,
            first_video=start,
            per_text=per_text,
            **arguments.constants(),
            BLOCK_A=config.block_a,
            BLOCK_D=config.block_d,
        )
        return length, *parts

    config = tuned(arguments, "forward", lambda c: score(c, 0, chunk), key="pair_statistics")
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
            TileConfig(64, 16, 4, 1),
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
