"""Launch configurations of the pair kernels, a table per architecture."""

from __future__ import annotations

import torch

from garevla.kernels.configs import LaunchConfig

# Columns of a video's basis, padded, by which a table's configurations differ.
_BASIS_COLUMNS = (16, 32, 64, 128)
_ByColumns = tuple[LaunchConfig, LaunchConfig, LaunchConfig, LaunchConfig]
_Table = dict[tuple[str, str], _ByColumns]

# (kernel, precision) → configurations: rows are texts, columns videos. Chosen by what they compile
# to: instructions a pair, bytes from the L2 cache a pair, registers (docs/kernels.md).
_AMPERE: _Table = {
    ("scores", "float32"): (
        LaunchConfig(128, 1, 16, 4, 2),
        LaunchConfig(16, 1, 16, 4, 2),
        LaunchConfig(16, 1, 16, 4, 1),
        LaunchConfig(16, 1, 16, 8, 1),
    ),
    ("scores", "tf32x3"): (
        LaunchConfig(128, 1, 32, 8, 2),
        LaunchConfig(64, 1, 32, 8, 1),
        LaunchConfig(32, 1, 32, 4, 1),
        LaunchConfig(16, 1, 32, 8, 1),
    ),
    ("scores", "tf32"): (
        LaunchConfig(128, 2, 32, 8, 3, tiles=2),
        LaunchConfig(128, 1, 32, 8, 2),
        LaunchConfig(64, 1, 32, 8, 2),
        LaunchConfig(64, 1, 32, 8, 2),
    ),
    ("scores", "bfloat16"): (
        LaunchConfig(128, 2, 64, 8, 3, tiles=2),
        LaunchConfig(128, 1, 64, 8, 2),
        LaunchConfig(64, 1, 64, 8, 2),
        LaunchConfig(64, 1, 64, 8, 2),
    ),
    ("statistics", "float32"): (
        LaunchConfig(64, 1, 16, 4, 2),
        LaunchConfig(16, 1, 16, 4, 2),
        LaunchConfig(16, 1, 16, 4, 1),
        LaunchConfig(16, 1, 16, 8, 1),
    ),
    ("statistics", "tf32x3"): (
        LaunchConfig(64, 1, 32, 4, 2),
        LaunchConfig(64, 1, 32, 8, 1),
        LaunchConfig(32, 1, 32, 8, 1),
        LaunchConfig(16, 1, 32, 8, 1),
    ),
    ("statistics", "tf32"): (
        LaunchConfig(128, 2, 32, 8, 3),
        LaunchConfig(128, 1, 32, 8, 3),
        LaunchConfig(64, 1, 32, 8, 2),
        LaunchConfig(32, 1, 32, 8, 2),
    ),
    ("statistics", "bfloat16"): (
        LaunchConfig(128, 2, 64, 8, 3),
        LaunchConfig(128, 1, 64, 8, 3),
        LaunchConfig(64, 1, 64, 8, 2),
        LaunchConfig(32, 1, 64, 8, 2),
    ),
    ("adjoint", "float32"): (
        LaunchConfig(32, 1, 16, 8, 1),
        LaunchConfig(16, 1, 16, 8, 1),
        LaunchConfig(16, 1, 16, 8, 1),
        LaunchConfig(16, 1, 16, 8, 1),
    ),
    ("adjoint", "tf32x3"): (
        LaunchConfig(64, 1, 16, 8, 1),
        LaunchConfig(16, 1, 16, 8, 1),
        LaunchConfig(16, 1, 16, 8, 1),
        LaunchConfig(16, 1, 16, 8, 1),
    ),
    ("adjoint", "tf32"): (
        LaunchConfig(64, 1, 32, 4, 3),
        LaunchConfig(32, 1, 32, 4, 3),
        LaunchConfig(16, 1, 32, 8, 3),
        LaunchConfig(16, 1, 32, 8, 2),
    ),
    ("adjoint", "bfloat16"): (
        LaunchConfig(64, 1, 64, 4, 3),
        LaunchConfig(32, 1, 64, 4, 3),
        LaunchConfig(16, 1, 32, 8, 3),
        LaunchConfig(16, 1, 32, 8, 3),
    ),
    ("scores", "float64"): (
        LaunchConfig(64, 1, 16, 8, 2),
        LaunchConfig(16, 1, 16, 4, 2),
        LaunchConfig(16, 1, 16, 4, 1),
        LaunchConfig(16, 1, 16, 8, 1),
    ),
    ("statistics", "float64"): (
        LaunchConfig(32, 1, 16, 8, 2),
        LaunchConfig(16, 1, 16, 4, 2),
        LaunchConfig(16, 1, 16, 4, 1),
        LaunchConfig(16, 1, 16, 8, 1),
    ),
    ("adjoint", "float64"): (LaunchConfig(16, 1, 16, 8, 1),) * 4,
}


def _changed(
    table: _Table, changes: dict[tuple[str, str], LaunchConfig], columns: int = 16
) -> _Table:
    """The table with other configurations for basis tiles of so many columns."""
    changed = dict(table)
    for key, config in changes.items():
        row = list(table[key])
        row[_BASIS_COLUMNS.index(columns)] = config
        changed[key] = (row[0], row[1], row[2], row[3])
    return changed


# Measured on an H200 (docs/performance.md): two programs of 64 texts on a multiprocessor wait at
# different times.
_HOPPER = _changed(_AMPERE, {("statistics", "bfloat16"): LaunchConfig(64, 2, 64, 4, 3)})
# Three products on warp groups, of 64 texts at least, spill kilobytes where the basis is wider.
_HOPPER = _changed(
    _HOPPER,
    {
        ("scores", "tf32x3"): LaunchConfig(32, 1, 32, 4, 1),
        ("statistics", "tf32x3"): LaunchConfig(32, 1, 32, 4, 1),
    },
    columns=32,
)
_MORE_WARPS = {
    ("adjoint", "tf32"): LaunchConfig(64, 1, 32, 8, 1),
    ("adjoint", "bfloat16"): LaunchConfig(64, 1, 64, 8, 1),
}
_BLACKWELL = _changed(
    _HOPPER,
    _MORE_WARPS
    | {
        ("scores", "tf32"): LaunchConfig(128, 2, 32, 8, 3),
        ("statistics", "tf32"): LaunchConfig(128, 1, 32, 8, 3),
        ("statistics", "bfloat16"): LaunchConfig(128, 1, 64, 8, 2),
    },
)
# Without tensor memory: it multiplies as Ampere does.
_SMALL_BLACKWELL = _changed(
    _AMPERE,
    _MORE_WARPS
    | {
        ("scores", "tf32"): LaunchConfig(128, 1, 32, 8, 3),
        ("scores", "bfloat16"): LaunchConfig(128, 1, 64, 8, 2),
        ("statistics", "tf32"): LaunchConfig(128, 1, 32, 8, 3),
        ("statistics", "bfloat16"): LaunchConfig(128, 1, 64, 8, 3),
    },
)
_TABLES = {80: _AMPERE, 90: _HOPPER, 100: _BLACKWELL, 120: _SMALL_BLACKWELL}


def gram_rows(columns: int) -> int:
    """Rows of the Gram matrices multiplied at a time in a tile of so many columns.

    Wider ones in parts: whole they neither fit into registers nor, in float64, into shared memory.
    """
    return columns if columns <= 32 else 16


def architecture(device: torch.device) -> int:
    """Compute capability times ten; 0 where there is no GPU."""
    if device.type != "cuda":
        return 0
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def pair_config(kernel: str, precision: str, columns: int, arch: int) -> LaunchConfig:
    """The committed configuration of a kernel.

    Args:
        kernel: ``"scores"``, ``"statistics"`` or ``"adjoint"``.
        precision: a preset, or ``"float64"``.
        columns: a power of two, the padded K.
        arch: compute capability times ten; that without a table takes the closest older one's,
            and 0, the interpreter, few and large steps.
    """
    if arch == 0:
        return LaunchConfig(16, 2 if columns <= 32 else 1, 64, 4, 1)
    table = _TABLES[max(known for known in _TABLES if known <= arch)]
    return table[kernel, precision][_BASIS_COLUMNS.index(max(columns, 16))]
