"""The ``native`` backend: operations in compiled C++ and CUDA (csrc/).

The operators are registered with torch.library: they work under autograd, torch.compile and
autocast, on the current device and stream.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from garevla.ops import products
from garevla.ops.backends import Backend, Implementation, register_backend
from garevla.ops.derivatives import first_derivative_only
from garevla.ops.eager.direction import sampled_direction
from garevla.ops.eager.frame_alignment import frame_alignment
from garevla.ops.hidden.operators import hidden_operations
from garevla.ops.hidden.tiles import ComposedTiles, Workspace
from garevla.ops.native_hidden import NativeFunctions
from garevla.ops.native_library import CUDA_UNAVAILABLE, UNAVAILABLE, c_function
from garevla.ops.operators import check_devices, pair_operations, register

NAME, NAMESPACE = "native", "garevla"

if UNAVAILABLE is None and products.library() == "onednn":
    c_function("garevla_take_onednn_from")(ctypes.c_int64(products.LEAST_WORK))


def unavailable(device: torch.device) -> str | None:
    """Why the backend cannot run on a device, or None."""
    if UNAVAILABLE is not None:
        return UNAVAILABLE
    kind = device.type.upper()
    if kind not in ("CPU", "CUDA"):
        return f"there are no kernels for {device.type} devices"
    if kind == "CUDA" and CUDA_UNAVAILABLE is not None:
        return f"there are no CUDA kernels: {CUDA_UNAVAILABLE}"
    return None


def direction(unit_coefficients: Tensor, basis: Tensor, alpha: float) -> Tensor:
    """As the eager operation, using the Gram matrices' symmetry."""
    if basis.dtype != unit_coefficients.dtype:
        raise TypeError(f"basis must be {unit_coefficients.dtype}, got {basis.dtype}")
    with_gradient = torch.is_grad_enabled() and (
        unit_coefficients.requires_grad or basis.requires_grad
    )
    return torch.ops.garevla.direction(unit_coefficients, basis, alpha, with_gradient)[0]


def _save_direction(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*output[1:])


def _direction_backward(ctx: Any, grad_value: Tensor, *_: Any) -> tuple[Any, ...]:
    first_derivative_only("the native backend")
    grad_unit, grad_basis = ctx.saved_tensors
    return grad_value * grad_unit, grad_value * grad_basis, None, None


def _fake_direction(
    unit_coefficients: Tensor, basis: Tensor, alpha: float, with_gradient: bool
) -> tuple[Tensor, ...]:
    check_devices(unit_coefficients, [basis])
    shapes = (unit_coefficients.shape, basis.shape) if with_gradient else ((0,), (0,))
    return tuple(unit_coefficients.new_empty(shape) for shape in ((), *shapes))


if UNAVAILABLE is None:
    register(NAMESPACE, NAME, num_constants=2)
    torch.library.register_fake("garevla::direction", _fake_direction)
    torch.library.register_autograd(
        "garevla::direction", _direction_backward, setup_context=_save_direction
    )


def _tiles(precision: str) -> ComposedTiles:
    return ComposedTiles(NativeFunctions(), Workspace())


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    **pair_operations(NAMESPACE),
    **hidden_operations(NAME, _tiles),
    "direction": direction,
    # Products and maxima of PyTorch's: there is nothing to gain.
    "sampled_direction": sampled_direction,
    "frame_alignment": frame_alignment,
}

register_backend(
    Backend(
        NAME,
        unavailable=unavailable,
        operations={name: Implementation(function) for name, function in _FUNCTIONS.items()},
        preference={"cpu": 1, "cuda": 1},
    )
)
