"""Tile configurations: a small table per architecture, and how a launch finds its own."""

from __future__ import annotations

import os
from typing import NamedTuple

import torch


class TileConfig(NamedTuple):
    """How a pair kernel cuts its work."""

    block_a: int  # texts of a tile, at least 16
    videos: int  # videos of a tile
    block_d: int  # features of one step of the products, at least 16
    num_warps: int
    num_stages: int

    def options(self) -> dict[str, int]:
        """What a launch takes besides arguments."""
        return {"num_warps": self.num_warps, "num_stages": self.num_stages}


# Input precisions of tl.dot: of the products over D, and of those with Gram matrices.
PRECISIONS = {
    "float32": ("ieee", "ieee"),
    "tf32x3": ("tf32x3", "ieee"),
    "tf32": ("tf32", "tf32"),
    # The operands are in bfloat16 already. A Gram matrix in it would cost digits of the variances.
    "bfloat16": ("ieee", "tf32"),
}

# Columns of a video's basis tile, by which a table's configurations differ.
_COLUMNS = (16, 32, 64, 128)
_Table = dict[tuple[str, str], tuple[TileConfig, TileConfig, TileConfig, TileConfig]]

# (kernel, precision) → configurations, chosen by what they compile to: instructions a pair, bytes
# from the L2 cache a pair, registers (docs/kernels.md). None has been timed on a GPU yet.
_AMPERE: _Table = {
    ("scores", "float32"): (
        TileConfig(64, 1, 16, 8, 2),
        TileConfig(16, 1, 16, 4, 2),
        TileConfig(16, 1, 16, 4, 1),
        TileConfig(16, 1, 16, 8, 1),
    ),
    ("scores", "tf32x3"): (
        TileConfig(128, 1, 32, 8, 2),
        TileConfig(64, 1, 32, 8, 1),
        TileConfig(32, 1, 32, 4, 1),
        TileConfig(16, 1, 32, 8, 1),
    ),
    ("scores", "tf32"): (
        TileConfig(128, 1, 32, 8, 2),
        TileConfig(128, 1, 32, 8, 2),
        TileConfig(32, 1, 32, 4, 2),
        TileConfig(16, 1, 32, 8, 1),
    ),
    ("scores", "bfloat16"): (
        TileConfig(128, 1, 64, 8, 2),
        TileConfig(128, 1, 64, 8, 2),
        TileConfig(32, 1, 64, 4, 2),
        TileConfig(16, 1, 64, 8, 1),
    ),
    ("statistics", "float32"): (
        TileConfig(32, 1, 16, 8, 2),
        TileConfig(16, 1, 16, 4, 2),
        TileConfig(16, 1, 16, 4, 1),
        TileConfig(16, 1, 16, 8, 1),
    ),
    ("statistics", "tf32x3"): (
        TileConfig(64, 1, 32, 4, 2),
        TileConfig(64, 1, 32, 8, 1),
        TileConfig(32, 1, 32, 8, 1),
        TileConfig(16, 1, 32, 8, 1),
    ),
    ("statistics", "tf32"): (
        TileConfig(128, 1, 32, 8, 2),
        TileConfig(128, 1, 32, 8, 1),
        TileConfig(32, 1, 32, 8, 1),
        TileConfig(16, 1, 32, 8, 1),
    ),
    ("statistics", "bfloat16"): (
        TileConfig(128, 1, 64, 8, 2),
        TileConfig(128, 1, 64, 8, 1),
        TileConfig(32, 1, 64, 8, 1),
        TileConfig(16, 1, 64, 8, 1),
    ),
    ("adjoint", "float32"): (
        TileConfig(16, 1, 16, 8, 1),
        TileConfig(16, 1, 16, 8, 1),
        TileConfig(16, 1, 16, 8, 1),
        TileConfig(16, 1, 16, 8, 1),
    ),
    ("adjoint", "tf32x3"): (
        TileConfig(64, 1, 16, 8, 1),
        TileConfig(16, 1, 16, 8, 1),
        TileConfig(16, 1, 16, 8, 1),
        TileConfig(16, 1, 16, 8, 1),
    ),
    ("adjoint", "tf32"): (
        TileConfig(64, 1, 16, 4, 1),
        TileConfig(32, 1, 32, 4, 1),
        TileConfig(16, 1, 32, 8, 1),
        TileConfig(16, 1, 32, 8, 1),
    ),
    ("adjoint", "bfloat16"): (
        TileConfig(64, 1, 16, 4, 1),
        TileConfig(32, 1, 64, 4, 1),
        TileConfig(16, 1, 32, 8, 1),
        TileConfig(16, 1, 32, 8, 1),
    ),
}


def _changed(table: _Table, smallest: dict[tuple[str, str], TileConfig]) -> _Table:
    """The table with other configurations for the smallest basis tile."""
    return table | {key: (config, *table[key][1:]) for key, config in smallest.items()}


_HOPPER = _changed(
    _AMPERE,
    {
        ("scores", "tf32"): TileConfig(128, 2, 32, 8, 2),
        ("scores", "bfloat16"): TileConfig(128, 2, 64, 8, 2),
        ("statistics", "float32"): TileConfig(32, 1, 16, 4, 2),
    },
)
_BLACKWELL = _changed(
    _HOPPER,
    {
        ("adjoint", "tf32"): TileConfig(64, 1, 32, 8, 1),
        ("adjoint", "bfloat16"): TileConfig(64, 1, 64, 8, 1),
    },
)
_TABLES = {80: _AMPERE, 90: _HOPPER, 100: _BLACKWELL}

# Numbers in the workspace of a chunk of pairs: bounds memory, whatever A and B are.
FORWARD_WORKSPACE = 2**24
BACKWARD_WORKSPACE = 2**26
# Programs of a launch, where there are tiles enough. A constant, not the device's number of
# multiprocessors: the order of the sums, and so the bits, are the same everywhere.
PROGRAMS = 1024


def architecture(device: torch.device) -> int:
    """Compute capability times ten; 0 where there is no GPU."""
    if device.type != "cuda":
        return 0
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def tile_config(kernel: str, precision: str, columns: int, arch: int) -> TileConfig:
    """The committed configuration of a kernel.

    Args:
        kernel: ``"scores"``, ``"statistics"`` or ``"adjoint"``.
        precision: a name of PRECISIONS.
        columns: a power of two, the padded K.
        arch: compute capability times ten; that without a table takes the closest older one's,
            and 0, the interpreter, few and large steps.
    """
    if arch == 0:
        return TileConfig(16, 2 if columns <= 32 else 1, 64, 4, 1)
    table = _TABLES[max(known for known in _TABLES if known <= arch)]
    return table[kernel, precision][_COLUMNS.index(max(columns, 16))]


def autotuning() -> bool:
    """Whether the first call of a shape may try several configurations: GAREVLA_AUTOTUNE=1."""
    return os.environ.get("GAREVLA_AUTOTUNE", "0") == "1"


def candidates(default: TileConfig) -> list[TileConfig]:
    """What autotuning tries: the default, and what differs from it in one number."""
    changes = (
        {"block_a": max(16, default.block_a // 2)},
        {"block_a": min(128, default.block_a * 2)},
        {"videos": 3 - default.videos},
        {"block_d": max(16, default.block_d // 2)},
        {"block_d": default.block_d * 2},
        {"num_warps": 12 - default.num_warps},
        {"num_stages": default.num_stages % 3 + 1},
        {"num_stages": (default.num_stages + 1) % 3 + 1},
    )
    return list(dict.fromkeys([default, *(default._replace(**change) for change in changes)]))
