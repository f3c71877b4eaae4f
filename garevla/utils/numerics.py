"""Small numerical functions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def safe_sqrt(x: Tensor) -> Tensor:
    """Square root with value and gradient 0 where ``x`` is 0 or below; NaN of NaN."""
    shut = x <= 0
    return torch.where(shut, 0.0, torch.where(shut, 1.0, x).sqrt())


def widest_dtype(*values: Tensor | torch.dtype) -> torch.dtype:
    """The dtype that holds all of these, at least float32: what the head computes in."""
    widest = torch.float32
    for value in values:
        dtype = value.dtype if isinstance(value, Tensor) else value
        widest = torch.promote_types(widest, dtype)
    return widest


class _ContiguousGradient(torch.autograd.Function):
    # With ctx: torch.compile of torch 2.4 knows no setup_context.
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad.contiguous()


def with_dtype(features: Tensor, dtype: torch.dtype) -> Tensor:
    """Features that a user gave in a dtype; the gradient that comes back to them is contiguous.

    Collectives of torch.distributed scatter a gradient of other strides wrongly, silently.
    """
    return _ContiguousGradient.apply(features).to(dtype)


def variance_slope(count: int) -> float:
    """What x minus the mean is to be multiplied with in the gradient of an unbiased variance.

    Exactly 0 of a single number, which is the mean but for rounding.
    """
    return 2 / (count - 1) if count > 1 else 0.0
