"""Precision presets of the matrix products inside kernels, and how operands are stored for them."""

from __future__ import annotations

import torch
from torch import Tensor

# tl.dot's name for the preset; with bfloat16 operands it is without effect.
INPUT_PRECISION = {"float32": "ieee", "tf32x3": "tf32x3", "tf32": "tf32", "bfloat16": "ieee"}


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
        # Triton's interpreter, the only way to run on a CPU, cannot multiply bfloat16.
        tensor = rounded if tensor.is_cuda else rounded.float()
    return tensor.contiguous()
