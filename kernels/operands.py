"""Operands of matrix products inside kernels: what is accepted, how it is stored and read."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from garevla.kernels.configs import check_precision
from garevla.kernels.launching import interpreted


def check_operands(precision: str, **tensors: Tensor) -> None:
    """Raise unless the preset is known and all tensors are float32 and on one device."""
    check_precision(precision)
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
