"""Tile configurations: a small table per architecture, and how a launch finds its own."""

from __future__ import annotations

import os
from typing import NamedTuple

import torch


class TileConfig(NamedTuple):
    """How a pair kernel cuts its work."""

    block_a: int  # texts of a tile, at least 16
    block_d: int  # features of one step of the products, at least 16
    num_warps: int
    num_stages: int


# Operand precisions: how the products over D are taken, and how those with Gram matrices.
PRECISIONS = {
    "float32": ("ieee", "ieee"),
    "tf32x3": ("tf32x3", "tf32x3"),
    "tf32": ("tf32", "tf32"),
    # A Gram matrix in bfloat16 would cost digits of the variances and save little.
    "bfloat16": ("bf16", "tf32"),
}

# (kernel family, products in float32?, columns of the basis tile) → configuration, by architecture;
# one that has no table of its own takes that of the closest older one.
_TABLES: dict[int, dict[tuple[str, bool, int], TileConfig]] = {
    # The interpreter: few and large steps over the features.
    0: {
        (family, exact, columns): TileConfig(16, 64, 4, 1)
        for family in ("forward", "backward")
        for exact in (True, False)
        for columns in (16, 32, 64, 128)
    },
    80: {
        ("forward", True, 16): TileConfig(32, 16, 4, 2),
        ("forward", True, 32): TileConfig(16, 16, 4, 2),
        ("forward", True, 64): TileConfig(16, 16, 4, 1),
        ("forward", True, 128): TileConfig(16, 16, 8, 1),
        ("forward", False, 16): TileConfig(64, 32, 4, 2),
        ("forward", False, 32): TileConfig(64, 32, 4, 2),
        ("forward", False, 64): TileConfig(32, 32, 4, 2),
        ("forward", False, 128): TileConfig(16, 32, 8, 1),
        ("backward", True, 16): TileConfig(16, 16, 8, 1),
        ("backward", True, 32): TileConfig(16, 16, 4, 1),
        ("backward", True, 64): TileConfig(16, 16, 8, 1),
        ("backward", True, 128): TileConfig(16, 16, 8, 1),
        ("backward", False, 16): TileConfig(16, 64, 8, 1),
        ("backward", False, 32): TileConfig(32, 32, 8, 2),
        ("backward", False, 64): TileConfig(16, 32, 8, 1),
        ("backward", False, 128): TileConfig(16, 32, 8, 1),
    },
}

_TABLES[90] = _TABLES[80] | {("forward", False, 16): TileConfig(64, 64, 4, 2)}

# Numbers in the workspace of a chunk of pairs: bounds memory, whatever A and B are.
FORWARD_WORKSPACE = 2**24
BACKWARD_WORKSPACE = 2**26
# Programs of a launch, where there are tiles enough. A constant, not the device's number of
# multiprocessors: the order of the sums, and so the bits, are the same everywhere.
PROGRAMS = 1024

LARGEST_BASIS = 128
"""Columns of the largest basis tile: H·F + 2 may not exceed it."""


def architecture(device: torch.device) -> int:
    """Compute capability times ten; 0 where there is no GPU."""
    if device.type != "cuda":
        return 0
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def tile_config(family: str, precision: str, basis_columns: int, arch: int) -> TileConfig:
    """The committed configuration of a kernel.

    Args:
        family: ``"forward"`` or ``"backward"``.
        precision: a name of PRECISIONS.
        basis_columns: a power of two, the padded K.
        arch: compute capability times ten.
    """
    table = _TABLES[max(known for known in _TABLES if known <= arch)]
    if precision == "tf32x3" and basis_columns <= 16:
        # Three products hold three times the operands.
        block_a, block_d = (64, 32) if family == "forward" else (16, 16)
        return table[family, False, 16]._replace(block_a=block_a, block_d=block_d)
    return table[family, precision == "float32", min(max(basis_columns, 16), LARGEST_BASIS)]


def autotuning() -> bool:
    """Whether the first call of a shape may try several configurations: GAREVLA_AUTOTUNE=1."""
    return os.environ.get("GAREVLA_AUTOTUNE", "0") == "1"


def candidates(default: TileConfig) -> list[TileConfig]:
    """What autotuning tries: the default and its neighbours."""
    found = [default]
    for block_a in (default.block_a // 2, default.block_a, default.block_a * 2):
        for block_d in (default.block_d // 2, default.block_d, default.block_d * 2):
            for num_warps in (4, 8):
                if block_a >= 16 and block_d >= 16:
                    found.append(TileConfig(block_a, block_d, num_warps, default.num_stages))
    return list(dict.fromkeys(found))
