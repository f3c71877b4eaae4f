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

from garevla.factors import TextFactors, VideoFactors
from garevla.pairs import PairTerms
from garevla.statistics import PairStatistics

_FOLDER = Path(__file__).parent
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
    """As :func:`garevla.pairs.pair_similarity`; nothing but the scores is kept."""
    return torch.ops.garevla.pair_similarity(*_arguments(text, video, pool_temperature))


def pair_terms(text: TextFactors, video: VideoFactors, pool_temperature: float) -> PairTerms:
    """As :func:`garevla.pairs.pair_terms`."""
    return PairTerms(*torch.ops.garevla.pair_terms(*_arguments(text, video, pool_temperature)))


def pair_statistics(
    text: TextFactors,
    video: VideoFactors,
    pool_temperature: float,
    logit_scale: Tensor,
    targets: Tensor,
    samples: Tensor | None = None,
) -> PairStatistics:
    """As :func:`garevla.statistics.pair_statistics`, in a stream of tiles: O(A + B·K²) memory
    beyond the inputs, forward and backward; no A × B tensor."""
    arguments = _arguments(text, video, pool_temperature)
    row, column, target, _, variance, mean, covariance, sampled = torch.ops.garevla.pair_statistics(
        *arguments, logit_scale, targets, samples
    )
    return PairStatistics(
        row, column, target, variance, mean, covariance, None if samples is None else sampled
    )


def direction(unit_coefficients: Tensor, basis: Tensor, alpha: float) -> Tensor:
    """As :func:`garevla.direction.direction`, using the Gram matrices' symmetry."""
    with_gradient = torch.is_grad_enabled() and (
        unit_coefficients.requires_grad or basis.requires_grad
    )
    return torch.ops.garevla.direction(unit_coefficients, basis, alpha, with_gradient)[0]


def _arguments(
    text: TextFactors, video: VideoFactors, pool_temperature: float
) -> tuple[Tensor, list[Tensor], float, list[float]]:
    rows, _, *factors, layer_norm_eps = video
    return text.features, [rows, *factors], pool_temperature, list(layer_norm_eps)


# The gradients of the operators below are in the order (text, rows, key_offset, …); the mask, which
# has none, is the second of the factors.


def _first_derivative_only() -> None:
    if torch.is_grad_enabled():
        raise RuntimeError(
            "the native backend has no second derivatives (create_graph=True): use backend='eager'"
        )


def _by_argument(gradients: list[Tensor]) -> tuple[Tensor, list[Tensor | None]]:
    text, rows, *others = gradients
    return text, [rows, None, *others]


def _save_pairs(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    text, factors, ctx.pool_temperature, ctx.layer_norm_eps = inputs
    ctx.save_for_backward(text, *factors)


def _similarity_backward(ctx: Any, grad_similarity: Tensor) -> tuple[Any, ...]:
    return _terms_backward(ctx, grad_similarity, None, None)


def _terms_backward(
    ctx: Any,
    grad_similarity: Tensor,
    grad_coefficients: Tensor | None,
    grad_norm: Tensor | None,
) -> tuple[Any, ...]:
    _first_derivative_only()
    text, *factors = ctx.saved_tensors
    gradients = torch.ops.garevla.pair_terms_backward(
        text,
        factors,
        ctx.pool_temperature,
        ctx.layer_norm_eps,
        grad_similarity,
        grad_coefficients,
        grad_norm,
    )
    return *_by_argument(gradients), None, None


def _save_statistics(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    text, factors, ctx.pool_temperature, ctx.layer_norm_eps, scale, targets, samples = inputs
    row, column, _, norm_mean, _, coefficient_mean, _, _ = output
    ctx.has_samples = samples is not None
    saved = [scale, targets, row, column, norm_mean, coefficient_mean]
    ctx.save_for_backward(*saved, *([samples] if ctx.has_samples else []), text, *factors)


def _statistics_backward(
    ctx: Any,
    grad_row: Tensor,
    grad_column: Tensor,
    grad_target: Tensor,
    grad_norm_mean: Tensor,
    *grad_others: Tensor,
) -> tuple[Any, ...]:
    _first_derivative_only()
    scale, targets, row, column, norm_mean, coefficient_mean, *rest = ctx.saved_tensors
    samples = rest.pop(0) if ctx.has_samples else None
    text, *factors = rest
    grad_variance, grad_mean, grad_covariance, grad_sampled = grad_others
    *gradients, grad_scale = torch.ops.garevla.pair_statistics_backward(
        text,
        factors,
        ctx.pool_temperature,
        ctx.layer_norm_eps,
        scale,
        targets,
        samples,
        row,
        column,
        norm_mean,
        coefficient_mean,
        [grad_row, grad_column, grad_target, grad_variance, grad_mean, grad_covariance],
        grad_sampled if ctx.has_samples else None,
    )
    return *_by_argument(gradients), None, None, grad_scale, None, None


def _save_direction(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*output[1:])


def _direction_backward(ctx: Any, grad_value: Tensor, *_: Any) -> tuple[Any, ...]:
    _first_derivative_only()
    grad_unit, grad_basis = ctx.saved_tensors
    return grad_value * grad_unit, grad_value * grad_basis, None, None


def _register() -> None:
    autograd, fake = torch.library.register_autograd, torch.library.register_fake

    @fake("garevla::pair_similarity")
    def _(text: Tensor, factors: list[Tensor], *_: Any) -> Tensor:
        _check_devices(text, factors)
        return text.new_empty(factors[0].shape[0], text.shape[0])

    @fake("garevla::pair_terms")
    def _(text: Tensor, factors: list[Tensor], *_: Any) -> tuple[Tensor, ...]:
        _check_devices(text, factors)
        texts, (videos, basis) = text.shape[0], factors[7].shape[:2]
        shapes = (videos, texts), (videos, basis, texts), (videos, texts)
        return tuple(text.new_empty(shape) for shape in shapes)

    @fake("garevla::pair_terms_backward")
    def _(text: Tensor, factors: list[Tensor], *_: Any) -> list[Tensor]:
        return _like(text, factors)

    @fake("garevla::pair_statistics")
    def _(text: Tensor, factors: list[Tensor], *others: Any) -> tuple[Tensor, ...]:
        samples = others[-1]
        _check_devices(text, factors)
        texts, (videos, basis) = text.shape[0], factors[7].shape[:2]
        sampled = (0, 0, basis) if samples is None else (*samples.shape, basis)
        rows, moments = (texts,), ((videos, basis), (videos, basis, basis))
        shapes = rows, (videos,), rows, rows, rows, *moments, sampled
        return tuple(text.new_empty(shape) for shape in shapes)

    @fake("garevla::pair_statistics_backward")
    def _(text: Tensor, factors: list[Tensor], *_: Any) -> list[Tensor]:
        return [*_like(text, factors), text.new_empty(())]

    @fake("garevla::direction")
    def _(
        unit_coefficients: Tensor, basis: Tensor, alpha: float, with_gradient: bool
    ) -> tuple[Tensor, ...]:
        _check_devices(unit_coefficients, [basis])
        shapes = (unit_coefficients.shape, basis.shape) if with_gradient else ((0,), (0,))
        return tuple(unit_coefficients.new_empty(shape) for shape in ((), *shapes))

    autograd("garevla::pair_similarity", _similarity_backward, setup_context=_save_pairs)
    autograd("garevla::pair_terms", _terms_backward, setup_context=_save_pairs)
    autograd("garevla::pair_statistics", _statistics_backward, setup_context=_save_statistics)
    autograd("garevla::direction", _direction_backward, setup_context=_save_direction)


def _like(text: Tensor, factors: list[Tensor]) -> list[Tensor]:
    _check_devices(text, factors)
    rows, _, *others = factors
    # Contiguous, whatever the factors are.
    return [text.new_empty(tensor.shape) for tensor in (text, rows, *others)]


def _check_devices(text: Tensor, factors: list[Tensor]) -> None:
    for factor in factors:
        if factor.device != text.device:
            raise ValueError(f"factors are on {factor.device}, text on {text.device}")


if UNAVAILABLE is None:
    _register()
