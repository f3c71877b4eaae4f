"""A tile of pairs backward, first part: the gradient of its increments."""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from garevla.kernels.hidden.arguments import SIZES_AND_SEEDS, Masks
from garevla.kernels.hidden.layers import (
    halves,
    increments,
    load_coefficients,
    load_pairs,
    load_rows_of_pairs,
    place_of_program,
)
from garevla.kernels.operands import load_operand
from garevla.kernels.rounding import rounded_product


class Moments(NamedTuple):
    """∂L/∂Δ_ij = offset + slope·Δ_ij."""

    offset: Tensor  # (b, D)
    slope: Tensor  # (b, D)


class FrameProducts(NamedTuple):
    """Where there is a LayerNorm: v_jf·Δ_ij from forward, and v_jf·b."""

    increment: Tensor  # (b, F, a), rows pair_stride apart
    bias: Tensor  # (b, F)


@triton.jit
def _increment_gradient(
    sum_along,  # (ROWS,) so far, as the next
    sum_average,  # (ROWS,)
    gradient,  # out
    bias_sum,  # out
    delta,  # (ROWS, C) some features
    start,  # the first of them
    grad_text,  # (ROWS,)
    grad_norm,  # (ROWS,)
    grad_frame,  # (ROWS, F_PAD)
    text,
    frames,
    moments,
    layer,
    pair,  # (ROWS,)
    place,  # Place
    TILE: tl.constexpr,
):
    """Writes the gradient of these features; the sums with them."""
    d = start + tl.arange(0, delta.shape[1])
    f = tl.arange(0, TILE.F_PAD)
    exists = d < TILE.DIM
    of_text = load_operand(text, place.texts, place.inside, TILE.DIM, d, TILE.DIM)
    scale = (2.0 * grad_norm)[:, None]
    if moments is not None:
        at = place.video * TILE.DIM + d
        slope = tl.load(moments.slope + at, mask=exists, other=0.0)
        offset = tl.load(moments.offset + at, mask=exists, other=0.0)
        grad = offset[None, :] + (scale + slope[None, :]) * delta
        grad = tl.where(place.inside[:, None], grad, 0.0)
    else:
        grad = scale * delta
    grad += grad_text[:, None] * of_text.to(tl.float32)
    if not TILE.GAP:
        # The frames' part is known: increments need not be kept beside their gradient.
        bias = tl.load(layer.bias + d, mask=exists, other=0.0)
        sum_along += tl.sum(rounded_product(grad, delta - bias[None, :]), 1)
    of_frame = load_operand(
        frames, place.video * TILE.FRAMES + f, f < TILE.FRAMES, TILE.DIM, d, TILE.DIM
    )
    grad_frames = grad_frame.to(of_frame.dtype)
    grad = tl.dot(grad_frames, of_frame, grad, input_precision=TILE.PRODUCTS)
    if not TILE.GAP:
        total = tl.load(layer.weight_sum + d, mask=exists, other=0.0)
        sum_average += tl.sum(rounded_product(grad, total[None, :]), 1)
    at = pair[:, None] * TILE.DIM + d[None, :]
    mask = place.inside[:, None] & exists[None, :]
    tl.store(gradient + at, grad.to(gradient.dtype.element_ty), mask=mask)
    at = place.part * TILE.DIM + d
    tl.store(bias_sum + at, tl.sum(grad, 0), mask=exists)
    return sum_along, sum_average


@triton.jit(do_not_specialize=SIZES_AND_SEEDS)
def hidden_gradient_kernel(
    gradient,  # (b, a, D) operands, out: ∂L/∂Δ
    bias_sum,  # (b, tiles, D) out: of it over a tile's texts
    along,  # (b, a) out: mean over H of ∂L/∂y·y; None without a LayerNorm, as the next two
    average,  # (b, a) out: mean over H of ∂L/∂y
    products,  # FrameProducts
    text,  # (a, D) operands
    frames,  # (b, F, D) operands
    moments,  # Moments, or None
    of_pairs,  # PairGradients
    layer,  # Layer
    num_texts,  # a
    num_videos,  # b
    pair_stride,
    first_text,
    first_video,
    key_low,
    key_high,
    TILE: tl.constexpr,  # HiddenConstants
):
    """Program (tile of texts, video), as in hidden_forward_kernel, which it computes once more;
    instead of products it writes D operands a pair.

    The two means of the LayerNorm's gradient come from the increments: Σ_h ∂L/∂y_h y_h =
    ∂L/∂Δ·(Δ − b), and Σ_h ∂L/∂y_h = ∂L/∂Δ·W 1.
    """
    PIECES: tl.constexpr = 2 if TILE.FEATURES > 128 else 1
    masks = Masks(first_text, first_video, key_low, key_high)
    place = place_of_program(num_texts, num_videos, pair_stride, masks, TILE)
    coefficients = load_coefficients(layer, place, TILE)
    grad_text = load_pairs(of_pairs.text, place)
    grad_norm = load_pairs(of_pairs.norm, place)
    grad_frame = load_rows_of_pairs(of_pairs.frame, place, TILE.FRAMES, TILE.F_PAD)
    f = tl.arange(0, TILE.F_PAD)
    sum_along = tl.full([TILE.ROWS], 0.0, tl.float32)
    if along is not None:
        at = products.bias + place.video * TILE.FRAMES + f
        of_bias = tl.load(at, mask=f < TILE.FRAMES, other=0.0)
        found = load_rows_of_pairs(products.increment, place, TILE.FRAMES, TILE.F_PAD)
        sum_along += tl.sum(rounded_product(grad_frame, found - of_bias[None, :]), 1)
    sum_average = tl.full([TILE.ROWS], 0.0, tl.float32)
    pair = place.video * num_texts + place.texts
    for part in range(0, TILE.DIM, TILE.FEATURES):
        d = part + tl.arange(0, TILE.FEATURES)
        delta, _, _ = increments(layer, coefficients, place, d, TILE)
        pieces = halves(delta) if PIECES == 2 else (delta,)
        for n in tl.static_range(PIECES):
            sum_along, sum_average = _increment_gradient(
                sum_along,
                sum_average,
                gradient,
                bias_sum,
                pieces[n],
                part + n * (TILE.FEATURES // PIECES),
                grad_text,
                grad_norm,
                grad_frame,
                text,
                frames,
                moments,
                layer,
                pair,
                place,
                TILE,
            )
    if along is not None:
        tl.store(along + pair, sum_along / TILE.HIDDEN, mask=place.inside)
        tl.store(average + pair, sum_average / TILE.HIDDEN, mask=place.inside)
