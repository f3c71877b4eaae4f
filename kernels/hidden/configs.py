"""Launch configurations of the hidden layers' kernels, a table per architecture."""

from __future__ import annotations

from garevla.kernels.configs import LaunchConfig

# (kernel, precision) → rows are texts, columns features, reduction hidden units, whichever of them
# a kernel sums over. Chosen by what they compile to (docs/kernels.md). None has been timed on a GPU
# yet.
_Table = dict[tuple[str, str], LaunchConfig]

_AMPERE: _Table = {
    ("forward", "float32"): LaunchConfig(64, 64, 16, 8, 2),
    ("forward", "tf32x3"): LaunchConfig(64, 64, 32, 8, 2),
    ("forward", "tf32"): LaunchConfig(64, 128, 32, 8, 2),
    ("forward", "bfloat16"): LaunchConfig(64, 256, 32, 8, 2),
    ("gradient", "float32"): LaunchConfig(64, 128, 16, 8, 2),
    ("gradient", "tf32x3"): LaunchConfig(64, 64, 32, 8, 2),
    ("gradient", "tf32"): LaunchConfig(64, 128, 32, 8, 2),
    ("gradient", "bfloat16"): LaunchConfig(64, 256, 32, 8, 2),
    ("adjoint", "float32"): LaunchConfig(64, 16, 64, 8, 2),
    ("adjoint", "tf32x3"): LaunchConfig(64, 32, 32, 8, 2),
    ("adjoint", "tf32"): LaunchConfig(64, 64, 64, 8, 2),
    ("adjoint", "bfloat16"): LaunchConfig(64, 64, 64, 8, 2),
    ("weight", "float32"): LaunchConfig(16, 128, 64, 8, 2),
    ("weight", "tf32x3"): LaunchConfig(32, 128, 64, 8, 2),
    ("weight", "tf32"): LaunchConfig(32, 256, 64, 8, 2),
    ("weight", "bfloat16"): LaunchConfig(32, 256, 64, 8, 2),
}
_HOPPER = _AMPERE | {
    ("weight", "bfloat16"): LaunchConfig(32, 512, 64, 8, 2),
    # Fewer than 64 texts keep off the warp groups' products: three for one spill registers, and of
    # such an adjoint CUDA 12.8's assembler, Triton 3.6's, got an address wrong.
    ("forward", "tf32x3"): LaunchConfig(32, 64, 32, 4, 2),
    ("gradient", "tf32x3"): LaunchConfig(32, 64, 32, 4, 2),
    ("adjoint", "tf32x3"): LaunchConfig(32, 32, 32, 4, 2),
}
_BLACKWELL = _AMPERE | {("weight", "bfloat16"): LaunchConfig(64, 256, 64, 8, 2)}
_TABLES = {80: _AMPERE, 90: _HOPPER, 100: _BLACKWELL}
KERNELS = ("forward", "gradient", "adjoint", "weight")


def hidden_config(kernel: str, precision: str, arch: int) -> LaunchConfig:
    """The committed configuration of a kernel.

    Args:
        kernel: one of KERNELS.
        precision: a preset.
        arch: compute capability times ten; that without a table takes the closest older one's,
            and 0, the interpreter, small tiles.
    """
    if arch == 0:
        return LaunchConfig(16, 32, 32, 4, 1)
    return _TABLES[max(known for known in _TABLES if known <= arch)][kernel, precision]
