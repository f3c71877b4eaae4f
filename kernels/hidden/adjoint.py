"""A tile of pairs backward, second part: through the hidden layer."""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from garevla.kernels.hidden.arguments import SIZES_AND_SEEDS, Masks, Place
from garevla.kernels.hidden.layers import (
    activate,
    dropout_mask,
    gap_before,
    load_coefficients,
    load_pairs,
    load_rows_of_pairs,
    load_values,
    mixed,
)
from garevla.kernels.operands import load_operand
from garevla.kernels.rounding import rounded_product


class VideoSums(NamedTuple):
    """Of each video, sums over a tile's texts."""

    frame: Tensor  # (b, tiles, F, H) of ∂L/∂(v_jf·Δ_ij) y_ij
    shift: Tensor  # (b, tiles, H), or (b, tiles, 2·H)
    video_hidden: Tensor | None  # (b, tiles, H)
    video_values: Tensor | None  # (b, tiles, K, 2·H)


class TextSums(NamedTuple):
    """Of each text, sums over a segment of the videos."""

    text: Tensor  # (S, a, H) of ∂L/∂(t_i·Δ_ij) y_ij
    text_hidden: Tensor | None  # (S, a, H)


class LayerNormGradient(NamedTuple):
    """Means over H, (b, a): of ∂L/∂y·y, and of ∂L/∂y."""

    along: Tensor
    average: Tensor


@triton.jit
def _gap_adjoint(
    coefficients,  # out
    sums,  # VideoSums out
    layer,  # Layer
    grad,  # (ROWS, UNITS) of the hidden vectors
    inverse,  # (ROWS,)
    place,  # Place
    start,
    num_texts,
    num_videos,
    TILE: tl.constexpr,
):
    """Hidden vectors, and the gradient (ROWS, UNITS) of the gap a_j − b_i."""
    h = start + tl.arange(0, TILE.UNITS)
    exists = h < TILE.HIDDEN
    gap, before = gap_before(layer, inverse, place, h, TILE)
    y, slope = activate(before, TILE)
    grad = rounded_product(grad, slope)
    if TILE.DROPOUT:
        mask = dropout_mask(place, start, TILE)
        y *= mask
        grad = rounded_product(grad, mask)
    of_unit = (start // TILE.UNITS).to(tl.int64) * num_videos + place.video
    tl.store(
        coefficients + (of_unit * num_texts + place.texts),
        tl.sum(rounded_product(grad, gap), 1),
        mask=place.inside,
    )
    at = place.part * TILE.HIDDEN + h
    tl.store(sums.shift + at, tl.sum(grad, 0), mask=exists)
    grad = rounded_product(grad, inverse[:, None])
    tl.store(sums.video_hidden + at, tl.sum(grad, 0), mask=exists)
    return y, grad


@triton.jit
def _attention_adjoint(
    coefficients,  # out
    sums,  # VideoSums out
    layer,  # Layer
    normalization,  # Normalization
    means,  # LayerNormGradient
    grad,  # (ROWS, UNITS) of the hidden vectors
    weights,  # (ROWS, K_PAD)
    place,  # Place
    start,
    num_texts,
    num_videos,
    TILE: tl.constexpr,
):
    """Hidden vectors (ROWS, UNITS)."""
    h = start + tl.arange(0, TILE.UNITS)
    exists = h < TILE.HIDDEN
    k = tl.arange(0, TILE.K_PAD)
    center = load_pairs(normalization.center, place)
    inverse = load_pairs(normalization.inverse, place)
    z = mixed(layer, weights, place, start, TILE)
    y = tl.where(exists[None, :], (z - center[:, None]) * inverse[:, None], 0.0)
    # These are of the chunk alone.
    pair = place.video * num_texts + place.texts
    along = tl.load(means.along + pair, mask=place.inside, other=0.0)
    average = tl.load(means.average + pair, mask=place.inside, other=0.0)
    grad = (grad - average[:, None] - y * along[:, None]) * inverse[:, None]
    grad = tl.where(exists[None, :], grad, 0.0)
    masked = grad
    if TILE.DROPOUT:
        masked = grad * dropout_mask(place, start, TILE)
    plain_values, masked_values = load_values(layer, place.video, h, TILE)
    low = plain_values.dtype
    plain_grad, masked_grad = grad.to(low), masked.to(low)
    found = tl.dot(plain_grad, tl.trans(plain_values), input_precision=TILE.PRODUCTS)
    found = tl.dot(masked_grad, tl.trans(masked_values), found, input_precision=TILE.PRODUCTS)
    of_unit = (start // TILE.UNITS).to(tl.int64) * num_videos + place.video
    at = (of_unit * TILE.ATTENTION + k)[None, :] * num_texts + place.texts[:, None]
    mask = place.inside[:, None] & (k < TILE.ATTENTION)[None, :]
    tl.store(coefficients + at, found, mask=mask)
    at = sums.shift + place.part * (2 * TILE.HIDDEN) + h
    tl.store(at, tl.sum(grad, 0), mask=exists)
    tl.store(at + TILE.HIDDEN, tl.sum(masked, 0), mask=exists)
    at = (
        sums.video_values
        + (place.part * TILE.ATTENTION + k)[:, None] * (2 * TILE.HIDDEN)
        + h[None, :]
    )
    mask = (k < TILE.ATTENTION)[:, None] & exists[None, :]
    weights = tl.trans(weights.to(low))
    tl.store(at, tl.dot(weights, plain_grad, input_precision=TILE.PRODUCTS), mask=mask)
    found = tl.dot(weights, masked_grad, input_precision=TILE.PRODUCTS)
    tl.store(at + TILE.HIDDEN, found, mask=mask)
    return y


@triton.jit(do_not_specialize=SIZES_AND_SEEDS)
def hidden_adjoint_kernel(
    coefficients,  # (units, b, a), or (units, b, K, a) out: gradients, a part for each UNITS of H
    video_sums,  # VideoSums out
    text_sums,  # TextSums in and out
    gradient,  # (b, a, D) operands: ∂L/∂Δ
    normalization,  # Normalization, or None
    means,  # LayerNormGradient, or None
    of_pairs,  # PairGradients
    layer,  # Layer
    num_texts,  # a
    num_videos,  # b
    segment_length,  # videos of a segment
    pair_stride,
    first_text,
    first_video,
    key_low,
    key_high,
    TILE: tl.constexpr,  # HiddenConstants
):
    """Program (tile of texts, UNITS of H, segment of videos): goes through the videos, and keeps
    what belongs to the texts in registers.

    D·H multiply-adds a pair, H activations with their slopes. From the L2 cache D·H operands of
    the weight a tile, and D operands of the gradient a pair for each UNITS.
    """
    tiles = tl.cdiv(num_texts, TILE.ROWS)
    tile = tl.program_id(0) % tiles
    start = tl.program_id(0) // tiles * TILE.UNITS
    masks = Masks(first_text, first_video, key_low, key_high)
    texts = tile * TILE.ROWS + tl.arange(0, TILE.ROWS)
    inside = texts < num_texts
    h = start + tl.arange(0, TILE.UNITS)
    exists = h < TILE.HIDDEN
    at = (tl.program_id(1).to(tl.int64) * num_texts + texts)[:, None] * TILE.HIDDEN + h[None, :]
    mask = inside[:, None] & exists[None, :]
    of_text = tl.load(text_sums.text + at, mask=mask, other=0.0)
    if TILE.GAP:
        of_gap = tl.load(text_sums.text_hidden + at, mask=mask, other=0.0)
    first = tl.program_id(1).to(tl.int64) * segment_length
    for video in range(first, tl.minimum(first + segment_length, num_videos)):
        grad = tl.full([TILE.ROWS, TILE.UNITS], 0.0, tl.float32)
        for part in range(0, TILE.DIM, TILE.FEATURES):
            d = part + tl.arange(0, TILE.FEATURES)
            of_pair = load_operand(
                gradient, video * num_texts + texts, inside, TILE.DIM, d, TILE.DIM
            )
            weight = load_operand(layer.weight, d, d < TILE.DIM, TILE.HIDDEN, h, TILE.HIDDEN)
            grad = tl.dot(of_pair, weight, grad, input_precision=TILE.PRODUCTS)
        place = Place(video, texts, inside, video * tiles + tile, pair_stride, masks)
        found = load_coefficients(layer, place, TILE)
        if TILE.GAP:
            y, grad = _gap_adjoint(
                coefficients,
                video_sums,
                layer,
                grad,
                found,
                place,
                start,
                num_texts,
                num_videos,
                TILE,
            )
            of_gap -= grad
        else:
            y = _attention_adjoint(
                coefficients,
                video_sums,
                layer,
                normalization,
                means,
                grad,
                found,
                place,
                start,
                num_texts,
                num_videos,
                TILE,
            )
        of_text += load_pairs(of_pairs.text, place)[:, None] * y
        of_frames = load_rows_of_pairs(of_pairs.frame, place, TILE.FRAMES, TILE.F_PAD)
        low = gradient.dtype.element_ty
        of_frames = tl.trans(of_frames.to(low))
        of_frames = tl.dot(of_frames, y.to(low), input_precision=TILE.PRODUCTS)
        f = tl.arange(0, TILE.F_PAD)
        part_at = (place.part * TILE.FRAMES + f)[:, None] * TILE.HIDDEN + h[None, :]
        part_mask = (f < TILE.FRAMES)[:, None] & exists[None, :]
        tl.store(video_sums.frame + part_at, of_frames, mask=part_mask)
    tl.store(text_sums.text + at, of_text, mask=mask)
    if TILE.GAP:
        tl.store(text_sums.text_hidden + at, of_gap, mask=mask)
