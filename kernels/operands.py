"""Matrix products inside kernels: precision presets, tiles, how operands are stored and read."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from garevla.kernels.launching import interpreted

# tl.dot's name for the preset; with bfloat16 operands it is without effect.
INPUT_PRECISION = {"float32": "ieee", "tf32x3": "tf32x3", "tf32": "tf32", "bfloat16": "ieee"}


class LaunchConfig(NamedTuple):
    """A launch configuration; sizes in elements."""

    rows: int  # of a tile of the result
    columns: int  # of it
    reduction: int  # features multiplied at a time
    output: int  # features of a gradient per program
    warps: int
    stages: int

    def options(self) -> dict[str, int]:
        """What a launch takes besides arguments."""
        return {"num_warps": self.warps, "num_stages": self.stages}


def along_features(size: int, dim: int) -> int:
    """A tile's extent along D features, cut to them; tl.dot takes 16 at least."""
    return min(size, max(16, triton.next_power_of_2(dim)))


def check_operands(precision: str, **tensors: Tensor) -> None:
    """Raise unless the preset is known and all tensors are float32 and on one device."""
    if precision not in INPUT_PRECISION:
        raise ValueError(f"precision must be one of {sorted(INPUT_PRECISION)}, got {precision!r}")
    devices = {tensor.device for tensor in tensors.values()}
    if len(devices) > 1:
        raise ValueError(
            f"{', '.join(tensors)} must share a device, got {sorted(map(str, devices))}"
        )
    for name, tensor in tensors.items():
        if tensor.dtype != torch.float32:
            raise TypeError(
                f"{name} must be torch.float32 for the triton kernels, got {tensor.dtype}"
            )


def as_operand(tensor: Tensor, precision: str) -> Tensor:
    """The contiguous tensor as kernels are to read it."""
    if precision == "bfloat16":
        rounded = tensor.to(torch.bfloat16)
        # Triton's interpreter cannot multiply bfloat16.
        tensor = rounded.float() if interpreted(tensor.device) else rounded
    return tensor.contiguous()


def as_bytes(mask: Tensor) -> Tensor:
    """The contiguous mask as kernels are to read it."""
    return mask.contiguous().view(torch.uint8)


@triton.jit
def load_operand(
    matrix,  # (·, DIM), rows `stride` apart
    rows,  # (R,)
    inside,  # (R,) bool: which of the rows exist
    stride,
    features,  # (C,)
    DIM: tl.constexpr,
):
    """Tile (R, C), zero outside of the matrix."""
    at = rows.to(tl.int64)[:, None] * stride + features[None, :]
    return tl.load(matrix + at, mask=inside[:, None] & (features < DIM)[None, :], other=0.0)
