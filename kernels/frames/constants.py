"""Frame alignment: what its kernels read and leave, and what they know at compilation."""

from __future__ import annotations

from typing import NamedTuple

import triton
from torch import Tensor

from garevla.kernels.configs import (
    ALIGNMENT_TILE,
    INPUT_PRECISIONS,
    LaunchConfig,
    along_features,
)


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


class CosineConstants(NamedTuple):
    """What a kernel that computes cosines knows at compilation; its argument TILE."""

    F: int
    G: int
    DIM: int
    TEXTS: int
    CAPTIONS: int  # of each text, at a time
    VIDEOS: int
    FRAMES: int  # of each video: all, up to a power of two
    REDUCTION: int  # features multiplied at a time
    PRECISION: str  # of tl.dot


class ProductConstants(NamedTuple):
    """The same of a kernel that multiplies the cosines' gradient."""

    F: int
    G: int
    DIM: int
    ROWS: int  # captions, or frames, whose gradient it computes
    COLUMNS: int  # frames, or captions, that they meet at a time
    OUTPUT: int  # features of the gradient
    PRECISION: str  # of tl.dot


def cosine_constants(
    config: LaunchConfig, num_captions: int, num_frames: int, dim: int, precision: str
) -> CosineConstants:
    """Those for F captions, G frames and D features."""
    # The least padding; among equals larger groups, which need fewer running maxima.
    captions = min((1, 2, 4, 8, 16), key=lambda n: triton.cdiv(num_captions, n) * n * (1 + 0.3 / n))
    frames = triton.next_power_of_2(num_frames)
    # All frames of a video are in one tile: with very many, fewer captions keep it in registers.
    rows = max(16, min(config.rows, ALIGNMENT_TILE // frames))
    return CosineConstants(
        F=num_captions,
        G=num_frames,
        DIM=dim,
        TEXTS=rows // captions,
        CAPTIONS=captions,
        VIDEOS=max(1, config.columns // frames),
        FRAMES=frames,
        REDUCTION=along_features(config.reduction, dim),
        PRECISION=INPUT_PRECISIONS[precision].products,
    )


def product_constants(
    config: LaunchConfig, num_captions: int, num_frames: int, dim: int, precision: str
) -> ProductConstants:
    """Those for F captions, G frames and D features."""
    return ProductConstants(
        F=num_captions,
        G=num_frames,
        DIM=dim,
        ROWS=config.rows,
        COLUMNS=config.columns,
        OUTPUT=along_features(config.output, dim),
        PRECISION=INPUT_PRECISIONS[precision].products,
    )
