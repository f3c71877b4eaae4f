"""Gradients that the pair operators are given, and how the adjoint kernel reads those of a tile."""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from garevla.kernels.pairs.gram import Matrices, multiply
from garevla.kernels.pairs.tile import columns_of, videos_of
from garevla.kernels.rounding import rounded_product


class PairGradients(NamedTuple):
    """Gradients of the pairs' own results, each from the chunk's first text on, or None."""

    similarity: Any = None  # (B, A)
    coefficients: Any = None  # (B, K, A)
    norm: Any = None  # (B, A)


class StatisticsGradients(NamedTuple):
    """The statistics, their gradients, and what both are of; a texts in a chunk."""

    logit_scale: Tensor  # (1)
    targets: Tensor  # (a)
    row_logsumexp: Tensor  # (a)
    grad_row_logsumexp: Tensor  # (a)
    grad_target: Tensor  # (a)
    norm_mean: Tensor  # (a)
    norm_slope: Tensor  # (a) gradient of the variance · 2 / (B − 1)
    column_logsumexp: Tensor  # (B)
    grad_column_logsumexp: Tensor  # (B)
    coefficient_mean: Tensor  # (B, K)
    mean_slope: Tensor  # (B, K) gradient of the mean / A
    covariance_slope: Tensor  # (B, K, K) symmetric: (gradient + its transpose) / (A − 1)
    samples: Tensor | None  # (a, n)
    grad_sampled: Tensor | None  # (a, n, K)

    def of_texts(self, chunk: slice) -> StatisticsGradients:
        """Those of some texts; what belongs to videos stays."""
        of_texts = ("targets", "row_logsumexp", "grad_row_logsumexp", "grad_target", "norm_mean")
        of_texts += ("norm_slope", "samples", "grad_sampled")
        tensors = {name: getattr(self, name) for name in of_texts}
        return self._replace(**{k: None if v is None else v[chunk] for k, v in tensors.items()})


@triton.jit
def similarity_gradients(
    statistics,  # StatisticsGradients
    pairs,  # Pairs
    tile_start,  # first text, int64
    num_texts,  # from it on
    group_start,  # first video, int64
    num_videos,  # from it on
    TILE,
):
    """The statistics' gradients of similarity and ‖Δ‖, (BLOCK_A, VIDEOS), and of logit_scale,
    each pair's part."""
    texts = tl.arange(0, TILE.BLOCK_A)
    slot, exists = videos_of(num_videos, TILE)
    inside = texts < num_texts
    scale = tl.load(statistics.logit_scale)
    logits = pairs.similarity * scale
    # The logsumexps contain the logit, but for rounding.
    row = (
        logits
        - tl.load(statistics.row_logsumexp + tile_start + texts, mask=inside, other=0.0)[:, None]
    )
    row = tl.exp(tl.where(row > 0, 0.0, row))
    column = logits - tl.load(statistics.column_logsumexp + group_start + slot)[None, :]
    column = tl.exp(tl.where(column > 0, 0.0, column))
    grad_row = tl.load(statistics.grad_row_logsumexp + tile_start + texts, mask=inside, other=0.0)
    grad_column = tl.load(statistics.grad_column_logsumexp + group_start + slot)
    grad_logits = row * grad_row[:, None] + column * grad_column[None, :]
    grad_logits = tl.where(inside[:, None] & exists[None, :], grad_logits, 0.0)
    grad_scale = rounded_product(grad_logits, pairs.similarity)
    target = tl.load(statistics.targets + tile_start + texts, mask=inside, other=-1)
    matching = (target - group_start).to(tl.int32)[:, None] == slot[None, :]
    grad_target = tl.load(statistics.grad_target + tile_start + texts, mask=inside, other=0.0)
    similarity = scale * grad_logits + tl.where(matching, grad_target[:, None], 0.0)

    mean = tl.load(statistics.norm_mean + tile_start + texts, mask=inside, other=0.0)
    norm = pairs.increment_norm - mean[:, None]
    norm *= tl.load(statistics.norm_slope + tile_start + texts, mask=inside, other=0.0)[:, None]
    return similarity, norm, grad_scale


@triton.jit
def coefficient_gradients(
    statistics,  # StatisticsGradients
    coefficients,  # (BLOCK_A, VIDEOS·K_PAD)
    tile_start,  # first text, int64
    num_texts,  # from it on
    group_start,  # first video, int64
    num_videos,  # from it on
    per_text,
    TILE,
):
    """The statistics' gradients of the coefficients, (BLOCK_A, VIDEOS·K_PAD)."""
    BASIS: tl.constexpr = TILE.HEADS * TILE.FRAMES + 2
    texts = tl.arange(0, TILE.BLOCK_A)
    of_basis, k, exists = columns_of(num_videos, TILE.K_PAD, TILE)
    inside = texts < num_texts
    slopes = statistics.covariance_slope + group_start * (BASIS * BASIS)
    at = of_basis * BASIS + k
    mean = tl.load(
        statistics.coefficient_mean + group_start * BASIS + at, mask=k < BASIS, other=0.0
    )
    moved = coefficients - mean[None, :]
    gradient = multiply(
        moved, Matrices(slopes, 1, BASIS, BASIS, TILE.K_PAD, TILE.K_PAD, False), num_videos, TILE
    )
    mean_slope = tl.load(
        statistics.mean_slope + group_start * BASIS + at, mask=k < BASIS, other=0.0
    )
    gradient = tl.where(inside[:, None], gradient + mean_slope[None, :], 0.0)
    if statistics.samples is not None:
        for n in range(per_text):
            entries = tile_start * per_text + (texts * per_text + n)
            sample = tl.load(statistics.samples + entries, mask=inside, other=-1)
            wanted = (sample - group_start).to(tl.int32)[:, None] == of_basis[None, :]
            gradient += tl.load(
                statistics.grad_sampled + entries[:, None] * BASIS + k[None, :],
                mask=wanted & (exists & (k < BASIS))[None, :],
                other=0.0,
            )
    return gradient


@triton.jit
def load_pairs(
    gradient,  # (B, A), or None
    pair_stride,  # A
    tile_start,  # first text, int64
    num_texts,  # from it on
    group_start,  # first video, int64
    num_videos,  # from it on
    dtype: tl.constexpr,
    TILE,
):
    """A tile_start (BLOCK_A, VIDEOS) of pairs' numbers; zeros for None."""
    loaded = tl.zeros((TILE.BLOCK_A, TILE.VIDEOS), dtype)
    if gradient is not None:
        texts = tl.arange(0, TILE.BLOCK_A)[:, None]
        slot, _ = videos_of(num_videos, TILE)
        at = (
            group_start * pair_stride
            + tile_start
            + (slot[None, :].to(tl.int64) * pair_stride + texts)
        )
        loaded += tl.load(gradient + at, mask=texts < num_texts, other=0.0)
    return loaded


@triton.jit
def load_coefficients(
    gradient,  # (B, K, A), or None
    pair_stride,  # A
    tile_start,  # first text, int64
    num_texts,  # from it on
    group_start,  # first video, int64
    num_videos,  # from it on
    dtype: tl.constexpr,
    TILE,
):
    """A tile_start (BLOCK_A, VIDEOS·K_PAD) of pairs' coefficients; zeros for None."""
    BASIS: tl.constexpr = TILE.HEADS * TILE.FRAMES + 2
    loaded = tl.zeros((TILE.BLOCK_A, TILE.VIDEOS * TILE.K_PAD), dtype)
    if gradient is not None:
        texts = tl.arange(0, TILE.BLOCK_A)[:, None]
        of_basis, k, _ = columns_of(num_videos, TILE.K_PAD, TILE)
        at = (of_basis * BASIS + k)[None, :].to(tl.int64) * pair_stride + texts
        at += group_start * BASIS * pair_stride + tile_start
        mask = (texts < num_texts) & (k < BASIS)[None, :]
        loaded += tl.load(gradient + at, mask=mask, other=0.0)
    return loaded
