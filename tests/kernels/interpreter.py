"""What Triton's interpreter does otherwise than a GPU."""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl


@triton.jit
def _maximum_with_zero(x, y):
    tl.store(y, tl.maximum(tl.load(x), 0.0))


@functools.cache
def maximum_keeps_nan() -> bool:
    """Whether ``tl.maximum`` returns NaN of NaN and a number. A GPU returns the number, and so do
    the interpreters of Triton 3.8 and newer; older ones do not."""
    x, y = torch.tensor([torch.nan]), torch.zeros(1)
    _maximum_with_zero[(1,)](x, y)
    return bool(y.isnan())
