"""Frame alignment: what its kernels read and leave, and what a program of each works on."""

from __future__ import annotations

from typing import NamedTuple

import triton
from torch import Tensor

from garevla.kernels.operands import INPUT_PRECISION, LaunchConfig, along_features

# By precision. Rows are captions, over all texts of a tile, columns frames, over all its videos.
SIMILARITY_CONFIGS = {
    "bfloat16": LaunchConfig(128, 64, 32, 0, 8, 5),
    "tf32": LaunchConfig(64, 64, 32, 0, 4, 3),
    "tf32x3": LaunchConfig(64, 64, 32, 0, 8, 2),
    "float32": LaunchConfig(32, 32, 16, 0, 4, 2),
}
MAXIMA_CONFIGS = SIMILARITY_CONFIGS | {
    "bfloat16": LaunchConfig(64, 64, 32, 0, 8, 5),
    "float32": LaunchConfig(32, 32, 16, 0, 8, 2),
}
# Rows are those of the gradient: captions, or frames.
PRODUCT_CONFIGS = {
    "bfloat16": LaunchConfig(64, 64, 0, 256, 8, 2),
    "tf32": LaunchConfig(64, 32, 0, 128, 8, 2),
    "tf32x3": LaunchConfig(64, 32, 0, 64, 8, 2),
    "float32": LaunchConfig(32, 32, 0, 64, 8, 2),
}
_LARGEST_TILE = 128 * 64


class Features(NamedTuple):
    """What is compared, and what of it takes part."""

    captions: Tensor  # (A, F, DIM) operands of length 1
    frames: Tensor  # (B, G, DIM) operands of length 1
    caption_mask: Tensor  # (A, F) uint8
    frame_mask: Tensor  # (B, G) uint8


class Maxima(NamedTuple):
    """Where the cosines' gradient is not zero, and what it is there."""

    frame_gradient: Tensor  # (A, F, B) float32: gradient of each caption's maximum
    frame_index: Tensor  # (A, F, B) int: its frame
    caption_gradient: Tensor  # (A, B, G) float32: gradient of each frame's maximum
    caption_index: Tensor  # (A, B, G) int: its caption


class CosineTile(NamedTuple):
    """What a program that computes cosines works on, known at compilation."""

    F: int
    G: int
    DIM: int
    TEXTS: int
    CAPTIONS: int  # of each text, at a time
    VIDEOS: int
    FRAMES: int  # of each video: all, up to a power of two
    REDUCTION: int  # features multiplied at a time
    PRECISION: str  # of tl.dot


class ProductTile(NamedTuple):
    """What a program that multiplies the cosines' gradient works on, known at compilation."""

    F: int
    G: int
    DIM: int
    ROWS: int  # captions, or frames, whose gradient it computes
    COLUMNS: int  # frames, or captions, that they meet at a time
    OUTPUT: int  # features of the gradient
    PRECISION: str  # of tl.dot


def cosine_tile(
    config: LaunchConfig, num_captions: int, num_frames: int, dim: int, precision: str
) -> CosineTile:
    """The tile for F captions, G frames and D features."""
    # The least padding; among equals larger groups, which need fewer running maxima.
    captions = min((1, 2, 4, 8, 16), key=lambda n: triton.cdiv(num_captions, n) * n * (1 + 0.3 / n))
    frames = triton.next_power_of_2(num_frames)
    # All frames of a video are in one tile: with very many, fewer captions keep it in registers.
    rows = max(16, min(config.rows, _LARGEST_TILE // frames))
    return CosineTile(
        F=num_captions,
        G=num_frames,
        DIM=dim,
        TEXTS=rows // captions,
        CAPTIONS=captions,
        VIDEOS=max(1, config.columns // frames),
        FRAMES=frames,
        REDUCTION=along_features(config.reduction, dim),
        PRECISION=INPUT_PRECISION[precision],
    )


def product_tile(
    config: LaunchConfig, num_captions: int, num_frames: int, dim: int, precision: str
) -> ProductTile:
    """The tile for F captions, G frames and D features."""
    return ProductTile(
        F=num_captions,
        G=num_frames,
        DIM=dim,
        ROWS=config.rows,
        COLUMNS=config.columns,
        OUTPUT=along_features(config.output, dim),
        PRECISION=INPUT_PRECISION[precision],
    )
