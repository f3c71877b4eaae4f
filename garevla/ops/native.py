"""The ``native`` backend: operations in compiled C++ and CUDA (csrc/).

The operators are registered with torch.library: they work under autograd, torch.compile and
autocast, on the current device and stream.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from garevla.ops.backends import Backend, Implementation, register_backend
from garevla.ops.derivatives import first_derivative_only
from garevla.ops.eager.direction import sampled_direction
from garevla.ops.eager.frame_alignment import frame_alignment
from garevla.ops.hidden.operators import hidden_operations
from garevla.ops.hidden.tiles import ComposedTiles, Workspace
from garevla.ops.native_hidden import NativeFunctions
from garevla.ops.operators import check_devices, pair_operations, register
from garevla.utils.versions import version_numbers

NAME, NAMESPACE = "native", "garevla"
_FOLDER = Path(__file__).parents[1]
LIBRARY = _FOLDER / "_native.so"
CUDA_LIBRARY = _FOLDER / "_native_cuda.so"
BUILD_REPORT = _FOLDER / "_native_build.json"

_OPERATORS = (
    "pair_similarity",
    "pair_terms",
    "pair_terms_backward",
    "pair_statistics",
    "pair_statistics_backward",
    "direction",
)


def _load() -> str | None:
    """Load the library; the reason where that is impossible."""
    if not LIBRARY.exists():
        return build_report().get("reason") or "the extension was not built (docs/building.md)"
    oldest = build_report().get("oldest_torch") or "0"
    if version_numbers(torch.__version__) < version_numbers(oldest):
        return (
            f"{LIBRARY.name} is for torch {oldest} and newer, and this is torch {torch.__version__}"
        )
    try:
        torch.ops.load_library(str(LIBRARY))
        for name in _OPERATORS:
            getattr(torch.ops.garevla, name)
    except (OSError, AttributeError) as error:
        return f"{LIBRARY.name} cannot be used: {error}; build it again (docs/building.md)"
    return None


def _load_cuda() -> str | None:
    """Load the CUDA kernels; the reason where that is impossible."""
    if UNAVAILABLE is not None:
        return UNAVAILABLE
    if not CUDA_LIBRARY.exists():
        return build_report().get("cuda_reason") or "see docs/building.md"
    if torch.version.cuda is None:
        return "this torch is without CUDA"
    built_for = build_report().get("cuda_version") or torch.version.cuda
    if version_numbers(built_for)[0] != version_numbers(torch.version.cuda)[0]:
        return f"they are for CUDA {built_for}, and this torch is for CUDA {torch.version.cuda}"
    try:
        torch.ops.load_library(str(CUDA_LIBRARY))
    except OSError as error:
        return f"{CUDA_LIBRARY.name} cannot be used: {error}"
    return None


def build_report() -> dict[str, Any]:
    """What the build left behind: what was built, for what, and what was not and why."""
    try:
        return json.loads(BUILD_REPORT.read_text())
    except FileNotFoundError:
        return {}


UNAVAILABLE = _load()
"""Why this backend cannot run here, or None."""

CUDA_UNAVAILABLE = _load_cuda()
"""Why its CUDA kernels cannot, or None."""


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
