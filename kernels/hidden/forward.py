"""A tile of pairs forward: increments on chip, and what the scores need of them."""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from garevla.kernels.hidden.arguments import SIZES_AND_SEEDS, Masks
from garevla.kernels.hidden.layers import increments, load_coefficients, place_of_program
from garevla.kernels.operands import load_operand
from garevla.kernels.rounding import rounded_product


class TileSums(NamedTuple):
    """Of a tile's increments."""

    mean: Tensor  # (b, tiles, D) over its texts
    squares: Tensor  # (b, tiles, D) of their deviations from it


@triton.jit(do_not_specialize=SIZES_AND_SEEDS)
def hidden_forward_kernel(
    text_product,  # (b, a) out: t_i·Δ_ij
    squared_norm,  # (b, a) out
    frame_product,  # (b, F, a) out: v_jf·Δ_ij
    sums,  # TileSums out; None where not wanted
    normalization,  # Normalization out, or None
    layer,  # Layer
    text,  # (a, D) operands
    frames,  # (b, F, D) operands
    num_texts,  # a
    num_videos,  # b
    first_text,
    first_video,
    key_low,
    key_high,
    TILE: tl.constexpr,  # HiddenConstants
):
    """Program (tile of texts, video), the videos of one tile next to each other.

    D·H multiply-adds a pair and H activations, these once more for each further FEATURES of D.
    From the L2 cache the weight, D·H operands a tile, and 4·H bytes of text_hidden a pair; written
    are F + 2 numbers a pair.
    """
    masks = Masks(first_text, first_video, key_low, key_high)
    place = place_of_program(num_texts, num_videos, num_texts, masks, TILE)
    video, texts, inside = place.video, place.texts, place.inside
    coefficients = load_coefficients(layer, place, TILE)
    f = tl.arange(0, TILE.F_PAD)
    of_text = tl.full([TILE.ROWS], 0.0, tl.float32)
    square = tl.full([TILE.ROWS], 0.0, tl.float32)
    of_frames = tl.full([TILE.ROWS, TILE.F_PAD], 0.0, tl.float32)
    pair = video * num_texts + texts
    for part in range(0, TILE.DIM, TILE.FEATURES):
        d = part + tl.arange(0, TILE.FEATURES)
        delta, center, inverse = increments(layer, coefficients, place, d, TILE)
        features = load_operand(text, texts, inside, TILE.DIM, d, TILE.DIM)
        of_text += tl.sum(rounded_product(delta, features.to(tl.float32)), 1)
        square += tl.sum(rounded_product(delta, delta), 1)
        features = load_operand(
            frames, video * TILE.FRAMES + f, f < TILE.FRAMES, TILE.DIM, d, TILE.DIM
        )
        of_frames = tl.dot(
            delta.to(features.dtype),
            tl.trans(features),
            of_frames,
            input_precision=TILE.PRODUCTS,
        )
        if sums is not None:
            left = num_texts - tl.program_id(0) // num_videos * TILE.ROWS
            count = tl.minimum(left, TILE.ROWS).to(tl.float32)
            average = tl.sum(tl.where(inside[:, None], delta, 0.0), 0) / count
            apart = tl.where(inside[:, None], delta - average[None, :], 0.0)
            at = place.part * TILE.DIM + d
            tl.store(sums.mean + at, average, mask=d < TILE.DIM)
            squares = tl.sum(rounded_product(apart, apart), 0)
            tl.store(sums.squares + at, squares, mask=d < TILE.DIM)
        if normalization is not None and part == 0:
            tl.store(normalization.center + pair, center, mask=inside)
            tl.store(normalization.inverse + pair, inverse, mask=inside)
    tl.store(text_product + pair, of_text, mask=inside)
    tl.store(squared_norm + pair, square, mask=inside)
    at = (video * TILE.FRAMES + f)[None, :] * num_texts + texts[:, None]
    exists = inside[:, None] & (f < TILE.FRAMES)[None, :]
    tl.store(frame_product + at, of_frames, mask=exists)
