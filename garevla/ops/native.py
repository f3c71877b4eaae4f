"""The ``native`` backend: the pair operation in compiled C++ and CUDA (csrc/).

The operators are registered with torch.library: they work under autograd, torch.compile and
autocast, on the current device and stream.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from garevla.increments.low_rank.factors import TextFactors, VideoFactors
from garevla.ops.eager.pairs import PairTerms
from garevla.ops.eager.statistics import PairStatistics
from garevla.ops.operators import check_devices, first_derivative_only, register

_FOLDER = Path(__file__).parents[1]
LIBRARY = _FOLDER / "_native.so"
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
    built_for = build_report().get("torch") or torch.__version__
    if built_for != torch.__version__:
        # It might load all the same, and misbehave.
        return (
            f"{LIBRARY.name} was built against torch {built_for}, and this is torch "
            f"{torch.__version__}; build it again (docs/building.md)"
        )
    try:
        torch.ops.load_library(str(LIBRARY))
        for name in _OPERATORS:
            getattr(torch.ops.garevla, name)
    except (OSError, AttributeError) as error:
        return f"{LIBRARY.name} cannot be used: {error}; build it again (docs/building.md)"
    return None


def build_report() -> dict[str, Any]:
    """What the build left behind: what was built, against what, and what was not and why."""
    try:
        return json.loads(BUILD_REPORT.read_text())
    except FileNotFoundError:
        return {}


UNAVAILABLE = _load()
"""Why this backend cannot run here, or None."""


def supports(device: torch.device) -> str | None:
    """Return why the backend cannot run on a device, or None where it can."""
    if UNAVAILABLE is not None:
        return UNAVAILABLE
    kind = device.type.upper()
    if kind not in ("CPU", "CUDA"):
        return f"there are no kernels for {device.type} devices"
    if not torch._C._dispatch_has_kernel_for_dispatch_key("garevla::pair_terms", kind):
        reason = build_report().get("cuda_reason") or "see docs/building.md"
        return f"the extension was built without {kind} kernels: {reason}"
    return None


def pair_similarity(text: TextFactors, video: VideoFactors, pool_temperature: float) -> Tensor:
    """As :func:`garevla.ops.eager.pairs.pair_similarity`; nothing but the scores is kept."""
    return torch.ops.garevla.pair_similarity(*_arguments(text, video, pool_temperature))


def pair_terms(text: TextFactors, video: VideoFactors, pool_temperature: float) -> PairTerms:
    """As :func:`garevla.ops.eager.pairs.pair_terms`."""
    return PairTerms(*torch.ops.garevla.pair_terms(*_arguments(text, video, pool_temperature)))


def pair_statistics(
    text: TextFactors,
    video: VideoFactors,
    pool_temperature: float,
    logit_scale: Tensor,
    targets: Tensor,
    samples: Tensor | None = None,
) -> PairStatistics:
    """As the eager operation, in a stream of tiles: O(A + B·K²) memory beyond the
    inputs, forward and backward; no A × B tensor."""
    arguments = _arguments(text, video, pool_temperature)
    row, column, target, _, variance, mean, covariance, sampled = torch.ops.garevla.pair_statistics(
        *arguments, logit_scale, targets, samples
    )
    return PairStatistics(
        row, column, target, variance, mean, covariance, None if samples is None else sampled
    )


def direction(unit_coefficients: Tensor, basis: Tensor, alpha: float) -> Tensor:
    """As :func:`garevla.ops.eager.direction.direction`, using the Gram matrices' symmetry."""
    with_gradient = torch.is_grad_enabled() and (
        unit_coefficients.requires_grad or basis.requires_grad
    )
    return torch.ops.garevla.direction(unit_coefficients, basis, alpha, with_gradient)[0]


def _arguments(
    text: TextFactors, video: VideoFactors, pool_temperature: float
) -> tuple[Tensor, list[Tensor], float, list[float]]:
    rows, _, *factors, layer_norm_eps = video
    return text.features, [rows, *factors], pool_temperature, list(layer_norm_eps)


def _save_direction(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*output[1:])


def _direction_backward(ctx: Any, grad_value: Tensor, *_: Any) -> tuple[Any, ...]:
    first_derivative_only("native")
    grad_unit, grad_basis = ctx.saved_tensors
    return grad_value * grad_unit, grad_value * grad_basis, None, None


def _fake_direction(
    unit_coefficients: Tensor, basis: Tensor, alpha: float, with_gradient: bool
) -> tuple[Tensor, ...]:
    check_devices(unit_coefficients, [basis])
    shapes = (unit_coefficients.shape, basis.shape) if with_gradient else ((0,), (0,))
    return tuple(unit_coefficients.new_empty(shape) for shape in ((), *shapes))


if UNAVAILABLE is None:
    register("garevla", "native", num_constants=2)
    torch.library.register_fake("garevla::direction", _fake_direction)
    torch.library.register_autograd(
        "garevla::direction", _direction_backward, setup_context=_save_direction
    )
