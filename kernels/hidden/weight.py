"""A tile of pairs backward, third part: the weight's gradient."""

from __future__ import annotations

import triton
import triton.language as tl

from garevla.kernels.hidden.arguments import SIZES_AND_SEEDS, Masks, Place
from garevla.kernels.hidden.layers import load_coefficients, load_pairs, unnormalized
from garevla.kernels.operands import load_operand


@triton.jit(do_not_specialize=SIZES_AND_SEEDS)
def hidden_weight_kernel(
    sums,  # (S, D, H) in and out: Σ ∂L/∂Δ yᵀ over a segment of the tiles
    gradient,  # (b, a, D) operands: ∂L/∂Δ
    normalization,  # Normalization, or None
    layer,  # Layer
    num_texts,  # a
    num_videos,  # b
    segment_length,  # tiles of texts of one video each
    pair_stride,
    first_text,
    first_video,
    key_low,
    key_high,
    TILE: tl.constexpr,  # HiddenConstants
):
    """Program (FEATURES of D, UNITS of H, segment of tiles): hidden vectors once more.

    D·H multiply-adds a pair; H activations, these once more for each further FEATURES of D. From
    the L2 cache D operands of the gradient a pair for each UNITS.
    """
    tiles = tl.cdiv(num_texts, TILE.ROWS)
    parts = tl.cdiv(TILE.DIM, TILE.FEATURES)
    d = tl.program_id(0) % parts * TILE.FEATURES + tl.arange(0, TILE.FEATURES)
    start = tl.program_id(0) // parts * TILE.UNITS
    h = start + tl.arange(0, TILE.UNITS)
    masks = Masks(first_text, first_video, key_low, key_high)
    at = (tl.program_id(1).to(tl.int64) * TILE.DIM + d)[:, None] * TILE.HIDDEN + h[None, :]
    mask = (d < TILE.DIM)[:, None] & (h < TILE.HIDDEN)[None, :]
    total = tl.load(sums + at, mask=mask, other=0.0)
    first = tl.program_id(1).to(tl.int64) * segment_length
    for n in range(first, tl.minimum(first + segment_length, tiles * num_videos)):
        video = n // tiles
        texts = n % tiles * TILE.ROWS + tl.arange(0, TILE.ROWS)
        inside = texts < num_texts
        place = Place(video, texts, inside, n, pair_stride, masks)
        coefficients = load_coefficients(layer, place, TILE)
        y = unnormalized(layer, coefficients, place, start, TILE)
        if not TILE.GAP:
            center = load_pairs(normalization.center, place)
            inverse = load_pairs(normalization.inverse, place)
            y = (y - center[:, None]) * inverse[:, None]
        grad = load_operand(gradient, video * num_texts + texts, inside, TILE.DIM, d, TILE.DIM)
        total = tl.dot(tl.trans(grad), y.to(grad.dtype), total, input_precision=TILE.PRODUCTS)
    tl.store(sums + at, total, mask=mask)
