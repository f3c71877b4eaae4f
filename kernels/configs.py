"""How kernels cut their work, how precisely they multiply, and how much memory they may use."""

from __future__ import annotations

from typing import NamedTuple

import triton

from garevla.ops.precision import PRECISIONS


class LaunchConfig(NamedTuple):
    """A launch configuration. Sizes in elements; 0 where a kernel has no such size."""

    rows: int  # of a program's tile
    columns: int  # of it
    reduction: int  # features multiplied at a time
    num_warps: int
    num_stages: int
    output: int = 0  # features of a gradient per program
    tiles: int = 1  # of a program, one after another along the columns

    def options(self) -> dict[str, int]:
        """What a launch takes besides arguments."""
        return {"num_warps": self.num_warps, "num_stages": self.num_stages}


class InputPrecision(NamedTuple):
    """What tl.dot calls the precision of its float32 operands."""

    products: str  # over the D features
    forms: str  # with Gram matrices, which the pair kernels alone have


# Operands of bfloat16 products are in bfloat16 already. A Gram matrix in it would cost digits of
# the variances.
INPUT_PRECISIONS = {
    "float32": InputPrecision("ieee", "ieee"),
    "tf32x3": InputPrecision("tf32x3", "ieee"),
    "tf32": InputPrecision("tf32", "tf32"),
    "bfloat16": InputPrecision("ieee", "tf32"),
}
"""By preset of :func:`garevla.ops.precision.use_precision`."""

# Rows and columns are videos of one text.
DIRECTION_VALUE = {
    "bfloat16": LaunchConfig(128, 128, 64, 8, 3),
    "tf32": LaunchConfig(128, 128, 32, 8, 3),
    "tf32x3": LaunchConfig(64, 64, 32, 8, 2),
    "float32": LaunchConfig(64, 64, 16, 8, 2),
}
DIRECTION_GRADIENT = {
    "bfloat16": LaunchConfig(64, 64, 32, 8, 3, output=512),
    "tf32": LaunchConfig(64, 32, 64, 8, 2, output=256),
    "tf32x3": LaunchConfig(64, 32, 32, 8, 2, output=128),
    "float32": LaunchConfig(32, 32, 16, 8, 2, output=128),
}
# Rows are captions, over all texts of a tile, columns frames, over all its videos.
ALIGNMENT = {
    "bfloat16": LaunchConfig(128, 64, 32, 8, 5),
    "tf32": LaunchConfig(64, 64, 32, 4, 3),
    "tf32x3": LaunchConfig(64, 64, 32, 8, 2),
    "float32": LaunchConfig(32, 32, 16, 4, 2),
}
ALIGNMENT_MAXIMA = ALIGNMENT | {
    "bfloat16": LaunchConfig(64, 64, 32, 8, 5),
    "float32": LaunchConfig(32, 32, 16, 8, 2),
}
# Rows are those of the gradient, captions or frames; columns what they are multiplied with.
ALIGNMENT_GRADIENT = {
    "bfloat16": LaunchConfig(64, 64, 0, 8, 2, output=256),
    "tf32": LaunchConfig(64, 32, 0, 8, 2, output=128),
    "tf32x3": LaunchConfig(64, 32, 0, 8, 2, output=64),
    "float32": LaunchConfig(32, 32, 0, 8, 2, output=64),
}
# Rows are texts, columns videos: one configuration for all precisions.
ROW_STATISTICS = LaunchConfig(64, 16, 0, 4, 1)

PAIR_PROGRAMS = 2048
"""Programs of a pair kernel's launch, where there are tiles enough. A constant, not the device's
number of multiprocessors: the order of the sums, and so the bits, are the same everywhere."""
ALIGNMENT_TILE = 128 * 64
"""Most cosines in a tile of the frame alignment, which registers hold."""
LARGEST_GRID = 65535
"""Most programs along a grid's second axis, a limit of CUDA."""

HIDDEN_PROGRAMS = 512
"""Programs of a hidden layer's launch, likewise, where a sum can be cut in parts."""

# Sizes of workspaces: they bound memory, whatever A and B are.
FORWARD_PAIRS = 2**24
"""Pairs whose similarities and norms exist at a time."""
BACKWARD_PRODUCTS = 2**26
"""Products of texts with rows, in numbers, whose gradients exist at a time."""
BACKWARD_TEXTS = 2**14
"""Texts among them."""
DIRECTION_INCREMENTS = 2**26
"""Increments in numbers, and as many of their gradient, that exist at a time. Enough to fill a
GPU."""
HIDDEN_GRADIENTS = 2**24
"""Gradients of increments, in numbers, that exist at a time: few enough to stay near the L2
cache."""
ALIGNMENT_MAXIMA_KEPT = 2**26
"""Maxima of captions and frames that exist at a time, in the backward pass."""


def check_precision(precision: str) -> None:
    """Raise ValueError unless the preset is known."""
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {sorted(PRECISIONS)}, got {precision!r}")


def along_features(size: int, dim: int) -> int:
    """A tile's extent along D features, cut to them; tl.dot takes 16 at least."""
    return min(size, max(16, triton.next_power_of_2(dim)))
