"""The arithmetic of a tile: hidden vectors of texts and one video, their increments.

A tile is ROWS texts (rows) of one video. Hidden vectors are made UNITS columns at a time, in
registers, and multiplied at once. Derivation and symbols: docs/derivation.md.

A LayerNorm over the hidden units need not be known before they are multiplied: W (z − c) r =
r (W z − c W 1), so that z is made once, its sums along with the product. They do not cancel,
because the values come centered (:func:`garevla.kernels.hidden.tiles.centered`): what is left of
a pair's mean is what its mask makes of it.
"""

from __future__ import annotations

import triton
import triton.language as tl

from garevla.kernels.hidden.arguments import Place
from garevla.kernels.operands import load_operand
from garevla.kernels.rounding import rounded_product


@triton.jit
def normal_distribution(x, ROUNDED: tl.constexpr):
    """Φ(x) within 1.2e-7, or 2e-5 where operands are rounded: on multiply-add units alone, with a
    third of tl.erf's instructions.

    0.5 + x·p(x²), p the polynomial whose largest error is the least for |x| up to 5.3 (4.5), from
    where on Φ is 0 or 1 but for less than that.
    """
    if ROUNDED:
        u = tl.minimum(x * x * 0.0987654321 - 1.0, 1.0)
        p = u * 0.00420333305 - 0.0100326082
        p = p * u + 0.0109811975
        p = p * u - 0.0157980546
        p = p * u + 0.0281468928
        p = p * u - 0.04090368
        p = p * u + 0.0547557995
        p = p * u - 0.0771418288
        p = p * u + 0.156903088
    else:
        u = tl.minimum(x * x * 0.0711997152 - 1.0, 1.0)
        p = u * 0.000283629895 - 0.000764565775
        p = p * u + 0.000732079789
        p = p * u - 0.00109594781
        p = p * u + 0.00313492911
        p = p * u - 0.00584955048
        p = p * u + 0.0088281706
        p = p * u - 0.0131854741
        p = p * u + 0.0189258363
        p = p * u - 0.0252983011
        p = p * u + 0.0320795216
        p = p * u - 0.0395889319
        p = p * u + 0.0492641628
        p = p * u - 0.0665185079
        p = p * u + 0.133392558
    return tl.minimum(tl.maximum(0.5 + x * p, 0.0), 1.0)


@triton.jit
def gate(x, NAME: tl.constexpr):
    """For activations x·sigmoid(q(x)): q and its derivative."""
    if NAME == "gelu_tanh":
        square = x * x
        q = 1.5957691216057308 * x * (1.0 + 0.044715 * square)
        slope = 1.5957691216057308 * (1.0 + 0.134145 * square)
    else:
        rate: tl.constexpr = 1.0 if NAME == "silu" else 1.702
        q = rate * x
        slope = tl.full(x.shape, rate, x.dtype)
    return q, slope


@triton.jit
def activate(x, TILE: tl.constexpr):
    """The activation and its derivative."""
    NAME: tl.constexpr = TILE.ACTIVATION
    if NAME == "gelu":
        share = normal_distribution(x, TILE.ROUNDED)
        y = x * share
        slope = share + x * (0.3989422804014327 * tl.exp(-0.5 * x * x))
    elif NAME == "relu":
        # Not a maximum, which would lose NaN.
        y = tl.where(x < 0, 0.0, x)
        slope = tl.where(x > 0, 1.0, 0.0)
    else:
        q, of_gate = gate(x, NAME)
        share = tl.sigmoid(q)
        y = x * share
        slope = share * (1.0 + x * (1.0 - share) * of_gate)
    return y, slope


@triton.jit
def dropout_mask(
    place,  # Place
    start,  # first hidden unit, a multiple of 4
    TILE: tl.constexpr,
):
    """0 or 1 / (1 − p), (ROWS, UNITS): garevla.ops.dropout.keep_mask's bits, four a time."""
    blocks = start // 4 + tl.arange(0, TILE.UNITS // 4)
    zero = tl.full([TILE.ROWS, TILE.UNITS // 4], 0, tl.uint32)
    c0 = zero + blocks.to(tl.uint32)[None, :]
    masks = place.masks
    c1 = zero + (masks.first_video + place.video).to(tl.uint32)
    c2 = zero + (masks.first_text + place.texts).to(tl.uint32)[:, None]
    low = masks.key_low.to(tl.uint32, bitcast=True)
    high = masks.key_high.to(tl.uint32, bitcast=True)
    w0, w1, w2, w3 = tl.philox_impl(c0, c1, c2, zero, low, high)
    words = tl.join(tl.join(w0, w2), tl.join(w1, w3))
    words = tl.reshape(words, (TILE.ROWS, TILE.UNITS))
    return tl.where(words >= tl.full([], TILE.THRESHOLD, tl.uint32), TILE.KEEP_SCALE, 0.0)


@triton.jit
def place_of_program(
    num_texts,
    num_videos,
    pair_stride,
    masks,  # Masks
    TILE: tl.constexpr,
):
    """This program's Place, of programs (tile of texts, video), the videos of one tile next to each
    other."""
    tile = tl.program_id(0) // num_videos
    video = (tl.program_id(0) % num_videos).to(tl.int64)
    tiles = tl.num_programs(0) // num_videos
    texts = tile * TILE.ROWS + tl.arange(0, TILE.ROWS)
    inside = texts < num_texts
    return Place(video, texts, inside, video * tiles + tile, pair_stride, masks)


@triton.jit
def load_pairs(
    matrix,  # (b, a), rows pair_stride apart
    place,  # Place
):
    """A tile's numbers, (ROWS,); 0 where there are no pairs."""
    at = place.video * place.pair_stride + place.texts
    return tl.load(matrix + at, mask=place.inside, other=0.0)


@triton.jit
def load_rows_of_pairs(
    matrix,  # (b, rows, a), rows pair_stride apart
    place,  # Place
    ROWS: tl.constexpr,
    PAD: tl.constexpr,
):
    """Its several numbers a pair, (ROWS of the tile, PAD), likewise."""
    k = tl.arange(0, PAD)
    at = (place.video * ROWS + k)[None, :] * place.pair_stride + place.texts[:, None]
    return tl.load(matrix + at, mask=place.inside[:, None] & (k < ROWS)[None, :], other=0.0)


@triton.jit
def load_coefficients(
    layer,  # Layer
    place,  # Place
    TILE: tl.constexpr,
):
    """A tile's inverse deviations (ROWS) or attention weights (ROWS, K_PAD), 0 where none are."""
    if TILE.GAP:
        found = load_pairs(layer.coefficients, place)
    else:
        found = load_rows_of_pairs(layer.coefficients, place, TILE.ATTENTION, TILE.K_PAD)
    return found


@triton.jit
def load_values(
    layer,  # Layer
    video,
    h,  # (UNITS,)
    TILE: tl.constexpr,
):
    """What attention weights mix, and what of it the mask multiplies: (K_PAD, UNITS) both."""
    k = tl.arange(0, TILE.K_PAD)
    at = (
        layer.video_values
        + ((video * TILE.ATTENTION + k) * (2 * TILE.HIDDEN))[:, None]
        + h[None, :]
    )
    mask = (k < TILE.ATTENTION)[:, None] & (h < TILE.HIDDEN)[None, :]
    plain = tl.load(at, mask=mask, other=0.0)
    return plain, tl.load(at + TILE.HIDDEN, mask=mask, other=0.0)


@triton.jit
def gap_before(
    layer,  # Layer
    inverse,  # (ROWS,) of load_coefficients
    place,  # Place
    h,  # (UNITS,)
    TILE: tl.constexpr,
):
    """a_j − b_i and what goes into the activation, (ROWS, UNITS); zeros past the last unit."""
    exists = h < TILE.HIDDEN
    of_video = tl.load(layer.video_hidden + place.video * TILE.HIDDEN + h, mask=exists, other=0.0)
    shift = tl.load(layer.shift + h, mask=exists, other=0.0)
    of_text = load_operand(
        layer.text_hidden, place.texts, place.inside, TILE.HIDDEN, h, TILE.HIDDEN
    )
    gap = of_video[None, :] - of_text
    return gap, inverse[:, None] * gap + shift[None, :]


@triton.jit
def mixed(
    layer,  # Layer
    weights,  # (ROWS, K_PAD) of load_coefficients
    place,  # Place
    start,
    TILE: tl.constexpr,
):
    """Before the LayerNorm: z (ROWS, UNITS), zeros past the last unit."""
    h = start + tl.arange(0, TILE.UNITS)
    exists = h < TILE.HIDDEN
    plain, masked = load_values(layer, place.video, h, TILE)
    weights = weights.to(plain.dtype)
    z = tl.dot(weights, plain, input_precision=TILE.PRODUCTS)
    z += tl.load(layer.shift + h, mask=exists, other=0.0)[None, :]
    more = tl.dot(weights, masked, input_precision=TILE.PRODUCTS)
    more += tl.load(layer.shift + TILE.HIDDEN + h, mask=exists, other=0.0)[None, :]
    if TILE.DROPOUT:
        more *= dropout_mask(place, start, TILE)
    return z + more


@triton.jit
def unnormalized(
    layer,  # Layer
    coefficients,  # of load_coefficients
    place,  # Place
    start,
    TILE: tl.constexpr,
):
    """Hidden vectors (ROWS, UNITS), before the LayerNorm where there is one; zeros past the last
    unit, anything past the last text."""
    if TILE.GAP:
        h = start + tl.arange(0, TILE.UNITS)
        _, before = gap_before(layer, coefficients, place, h, TILE)
        y, _ = activate(before, TILE)
        if TILE.DROPOUT:
            y *= dropout_mask(place, start, TILE)
    else:
        y = mixed(layer, coefficients, place, start, TILE)
    return y


@triton.jit
def increments(
    layer,  # Layer
    coefficients,  # of load_coefficients
    place,  # Place
    d,  # (FEATURES,)
    TILE: tl.constexpr,
):
    """Some features of a tile's increments (ROWS, FEATURES), center and inverse (ROWS) of a
    LayerNorm."""
    delta = tl.full([TILE.ROWS, TILE.FEATURES], 0.0, tl.float32)
    center = tl.full([TILE.ROWS], 0.0, tl.float32)
    inverse = tl.full([TILE.ROWS], 0.0, tl.float32)
    for start in range(0, TILE.HIDDEN, TILE.UNITS):
        h = start + tl.arange(0, TILE.UNITS)
        y = unnormalized(layer, coefficients, place, start, TILE)
        if not TILE.GAP:
            center += tl.sum(y, 1)
            inverse += tl.sum(rounded_product(y, y), 1)
        weight = load_operand(layer.weight, d, d < TILE.DIM, TILE.HIDDEN, h, TILE.HIDDEN)
        delta = tl.dot(y.to(weight.dtype), tl.trans(weight), delta, input_precision=TILE.PRODUCTS)
    exists = d < TILE.DIM
    if not TILE.GAP:
        center = center / TILE.HIDDEN
        variance = tl.maximum(inverse / TILE.HIDDEN - center * center, 0.0)
        inverse = tl.rsqrt(variance + TILE.EPS)
        total = tl.load(layer.weight_sum + d, mask=exists, other=0.0)
        delta = (delta - center[:, None] * total[None, :]) * inverse[:, None]
    delta += tl.load(layer.bias + d, mask=exists, other=0.0)[None, :]
    return delta, center, inverse


@triton.jit
def halves(
    x,  # (ROWS, C)
):
    """Its left and its right half, which lie in different registers: what is done with one after
    the other needs fewer at a time."""
    x = tl.reshape(x, (x.shape[0], 2, x.shape[1] // 2))
    return tl.split(tl.permute(x, (0, 2, 1)))
