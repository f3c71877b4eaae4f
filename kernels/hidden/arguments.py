"""What the hidden layers' kernels are given, and what they know at compilation."""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
from torch import Tensor

from garevla.kernels.configs import INPUT_PRECISIONS, LaunchConfig, along_features
from garevla.ops.dropout import threshold
from garevla.ops.hidden.tiles import Tile

# Everywhere: b videos, a texts, D features, H hidden units, F frames, K attention weights.

SIZES_AND_SEEDS = [
    "num_texts",
    "num_videos",
    "segment_length",
    "pair_stride",
    "first_text",
    "first_video",
    "key_low",
    "key_high",
]
"""Arguments that kernels are not specialized for: others are no reason to compile again."""


class Layer(NamedTuple):
    """What makes hidden vectors and multiplies them; None where the kind of layer has no such."""

    coefficients: Tensor  # (b, a), or (b, K, a): rows pair_stride apart
    text_hidden: Tensor | None  # (a, H)
    video_hidden: Tensor | None  # (b, H)
    video_values: Tensor | None  # (b, K, 2·H) operands, centered
    shift: Tensor  # (H), or (2·H) centered
    weight: Tensor  # (D, H) operands
    bias: Tensor  # (D)
    weight_sum: Tensor | None  # (D) over H


class Normalization(NamedTuple):
    """Of the last LayerNorm, for each pair: y = (z − center)·inverse; rows pair_stride apart."""

    center: Tensor  # (b, a)
    inverse: Tensor  # (b, a)


class PairGradients(NamedTuple):
    """Gradients of a pair's products; rows pair_stride apart."""

    text: Tensor  # (b, a)
    norm: Tensor  # (b, a)
    frame: Tensor  # (b, F, a)


class Masks(NamedTuple):
    """Where the dropout masks come from."""

    first_text: Any
    first_video: Any
    key_low: Any  # 32 bits each
    key_high: Any


class Place(NamedTuple):
    """Where a program's tile is among the pairs that its kernel is given."""

    video: Any  # int64
    texts: Any  # (ROWS,)
    inside: Any  # (ROWS,) bool: which of them exist
    part: Any  # int64, of a video's sums over the texts of a tile: video · tiles + tile
    pair_stride: Any  # texts of a row of pairs
    masks: Any  # Masks


class HiddenConstants(NamedTuple):
    """What a kernel knows at compilation; its argument TILE."""

    GAP: bool  # the kind of layer
    ACTIVATION: str
    DIM: int
    HIDDEN: int
    ATTENTION: int  # K; 0 where there are none
    FRAMES: int
    K_PAD: int  # K up to a power of two
    F_PAD: int  # F, likewise
    EPS: float  # of the last LayerNorm
    DROPOUT: bool
    THRESHOLD: int  # a random word from which on a number is kept
    KEEP_SCALE: float  # what it is then multiplied with
    ROWS: int  # texts at a time
    FEATURES: int  # of D at a time
    UNITS: int  # of H at a time
    ROUNDED: bool  # whether operands have fewer digits than float32
    PRODUCTS: str  # precision of tl.dot


def constants(tile: Tile, config: LaunchConfig, precision: str) -> HiddenConstants:
    """The compile-time constants of a kernel in this configuration."""
    layer, factors = tile.layer, tile.factors
    dim, hidden = factors["weight"].shape
    gap = layer.kind == "gap"
    frames = factors["frames"].shape[1]
    attention = 0 if gap else tile.coefficients.shape[1]
    probability = layer.dropout if tile.dropout is not None else 0.0
    return HiddenConstants(
        GAP=gap,
        ACTIVATION=layer.activation,
        DIM=dim,
        HIDDEN=hidden,
        ATTENTION=attention,
        FRAMES=frames,
        K_PAD=_padded(attention),
        F_PAD=_padded(frames),
        EPS=0.0 if gap else layer.layer_norm_eps[2],
        DROPOUT=tile.dropout is not None,
        THRESHOLD=threshold(probability),
        KEEP_SCALE=1 / (1 - probability),
        ROWS=config.rows,
        FEATURES=along_features(config.columns, dim),
        UNITS=along_features(config.reduction, hidden),
        ROUNDED=precision in ("tf32", "bfloat16"),
        PRODUCTS=INPUT_PRECISIONS[precision].products,
    )


def _padded(size: int) -> int:
    return max(16, triton.next_power_of_2(size))
