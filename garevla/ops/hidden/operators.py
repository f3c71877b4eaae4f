"""The hidden-layer operations as operators of torch.library, the same for every backend."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from garevla.ops.derivatives import first_derivative_only
from garevla.ops.hidden.checks import check_pairs, check_statistics
from garevla.ops.hidden.engine import HiddenEngine, HiddenStatistics, HiddenTerms
from garevla.ops.hidden.factors import FACTORS, NO_GRADIENT, HiddenLayer, HiddenPairs
from garevla.ops.hidden.tiles import TileKernels
from garevla.ops.operators import check_devices
from garevla.ops.precision import current_precision, full_precision, use_precision

NAMESPACE = "garevla_hidden"

_kernels: dict[str, Callable[[str], TileKernels]] = {}

_PAIRS = (
    "str backend, str precision, Tensor[] factors, Tensor? seed, str kind, str activation, "
    "float[] layer_norm_eps, float dropout, float pool_temperature, float? alpha"
)
# As many arguments name the pairs and how they are scored.
_COUNT = _PAIRS.count(",") + 1
_SCHEMAS = {
    "hidden_terms": f"({_PAIRS}, bool with_moments) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    "hidden_terms_backward": f"({_PAIRS}, Tensor? mean, Tensor?[] gradients) -> Tensor[]",
    "hidden_statistics": (
        f"({_PAIRS}, Tensor logit_scale, Tensor targets) -> "
        "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
    ),
    "hidden_statistics_backward": (
        f"({_PAIRS}, Tensor logit_scale, Tensor targets, Tensor[] saved, Tensor[] gradients) "
        "-> Tensor[]"
    ),
}


def hidden_operations(
    backend: str, kernels: Callable[[str], TileKernels]
) -> dict[str, Callable[..., Any]]:
    """A backend's hidden-layer operations.

    Args:
        backend: its name.
        kernels: makes its kernels for one call, of the precision of products
            (:func:`garevla.ops.precision.current_precision`). The backward pass has the forward's,
            whichever thread it runs in.
    """
    _kernels[backend] = kernels
    operators = getattr(torch.ops, NAMESPACE)

    def arguments(pairs: HiddenPairs, pool_temperature: float, alpha: float | None) -> Any:
        layer = pairs.layer
        constants = layer.kind, layer.activation, list(layer.layer_norm_eps), layer.dropout
        precision = current_precision()
        return (
            *(backend, precision, pairs.tensors(), pairs.seed),
            *constants,
            *(pool_temperature, alpha),
        )

    def hidden_similarity(pairs: HiddenPairs, pool_temperature: float) -> Tensor:
        """Scores (B, A) alone."""
        return operators.hidden_terms(*arguments(pairs, pool_temperature, None), False)[0]

    def hidden_terms(
        pairs: HiddenPairs, pool_temperature: float, alpha: float | None = None
    ) -> HiddenTerms:
        """Scores and norms of all pairs, O(A·B) numbers, and the increments' moments.

        Args:
            pairs: the factors.
            pool_temperature: τ_p of the pooling.
            alpha: of the directional diversity, which is left out without.
        """
        return HiddenTerms(
            *operators.hidden_terms(*arguments(pairs, pool_temperature, alpha), True)
        )

    def hidden_statistics(
        pairs: HiddenPairs,
        pool_temperature: float,
        logit_scale: Tensor,
        targets: Tensor,
        alpha: float | None = None,
    ) -> HiddenStatistics:
        """What the loss needs of all pairs, in a stream of tiles: no A × B tensor.

        Args:
            pairs, pool_temperature, alpha: as in :func:`hidden_terms`.
            logit_scale: 0-d.
            targets: (A,) int64, the video of each text.
        """
        return HiddenStatistics(
            *operators.hidden_statistics(
                *arguments(pairs, pool_temperature, alpha), logit_scale, targets
            )
        )

    functions = (hidden_similarity, hidden_terms, hidden_statistics)
    return {function.__name__: function for function in functions}


def _pairs(*arguments: Any) -> HiddenPairs:
    """From the operators' first arguments."""
    _, _, factors, seed, kind, activation, layer_norm_eps, dropout, *_ = arguments
    layer = HiddenLayer(kind, activation, tuple(layer_norm_eps), dropout)
    return HiddenPairs(layer, dict(zip(FACTORS[kind], factors, strict=True)), seed)


def _engine(pairs: HiddenPairs, arguments: tuple[Any, ...]) -> HiddenEngine:
    backend, precision, *_, pool_temperature, alpha = arguments[:_COUNT]
    return HiddenEngine(pairs, pool_temperature, alpha, _kernels[backend](precision))


def _in_its_precision(implementation: Callable[..., Any]) -> Callable[..., Any]:
    """PyTorch's own products in the precision of the kernels', whatever surrounds them."""

    def run(*arguments: Any) -> Any:
        _, precision, factors, *_ = arguments
        with full_precision(factors[0]), use_precision(precision):
            return implementation(*arguments)

    return run


def _terms(*arguments: Any) -> HiddenTerms:
    pairs = _pairs(*arguments)
    check_pairs(pairs)
    return _engine(pairs, arguments).terms(arguments[_COUNT])


def _terms_backward(*arguments: Any) -> list[Tensor]:
    mean, gradients = arguments[_COUNT:]
    engine = _engine(_pairs(*arguments), arguments)
    return list(engine.terms_backward(mean, tuple(gradients)).values())


def _statistics(*arguments: Any) -> HiddenStatistics:
    pairs, (logit_scale, targets) = _pairs(*arguments), arguments[_COUNT:]
    check_pairs(pairs)
    check_statistics(pairs, logit_scale, targets)
    return _engine(pairs, arguments).statistics(logit_scale.reshape(()), targets)


def _statistics_backward(*arguments: Any) -> list[Tensor]:
    logit_scale, targets, saved, gradients = arguments[_COUNT:]
    found, grad_scale = _engine(_pairs(*arguments), arguments).statistics_backward(
        logit_scale.reshape(()), targets, HiddenStatistics(*saved), HiddenStatistics(*gradients)
    )
    return [*found.values(), grad_scale]


def _fake_terms(*arguments: Any) -> tuple[Tensor, ...]:
    pairs = _pairs(*arguments)
    check_devices(pairs.text, pairs.tensors())
    mean = pairs.factors["mean_frame"].shape
    scores = mean[0], len(pairs.text)
    moments = mean if arguments[_COUNT] else (0,)
    shapes = scores, scores, moments, moments, ()
    return tuple(pairs.text.new_empty(shape) for shape in shapes)


def _fake_gradients(*arguments: Any) -> list[Tensor]:
    factors = _pairs(*arguments).factors
    return [x.new_empty(x.shape) for name, x in factors.items() if name not in NO_GRADIENT]


def _fake_statistics(*arguments: Any) -> tuple[Tensor, ...]:
    pairs = _pairs(*arguments)
    check_devices(pairs.text, pairs.tensors())
    mean = pairs.factors["mean_frame"].shape
    rows, columns = (len(pairs.text),), mean[:1]
    shapes = rows, columns, rows, rows, rows, mean, mean, ()
    return tuple(pairs.text.new_empty(shape) for shape in shapes)


def _fake_statistics_backward(*arguments: Any) -> list[Tensor]:
    return [*_fake_gradients(*arguments), arguments[2][0].new_empty(())]


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...], *more: Tensor) -> None:
    backend, ctx.precision, factors, seed, *ctx.constants = inputs[:_COUNT]
    ctx.backend, ctx.num_factors, ctx.has_seed = backend, len(factors), seed is not None
    ctx.save_for_backward(*factors, *([seed] if ctx.has_seed else []), *more)


def _saved(ctx: Any) -> tuple[list[Any], list[Tensor]]:
    """The first arguments, and what was saved beside the factors."""
    first_derivative_only(f"the {ctx.backend} backend")
    factors, rest = ctx.saved_tensors[: ctx.num_factors], list(ctx.saved_tensors[ctx.num_factors :])
    seed = rest.pop(0) if ctx.has_seed else None
    return [ctx.backend, ctx.precision, list(factors), seed, *ctx.constants], rest


def _by_argument(ctx: Any, gradients: list[Tensor]) -> list[Any]:
    """Gradients of the first arguments."""
    kind = ctx.constants[0]
    found = iter(gradients)
    factors = [None if name in NO_GRADIENT else next(found) for name in FACTORS[kind]]
    return [None, None, factors, None, *[None] * len(ctx.constants)]


def _save_terms(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.with_moments = inputs[_COUNT]
    _save(ctx, inputs, output, *([output[2]] if ctx.with_moments else []))


def _terms_gradient(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
    pairs, rest = _saved(ctx)
    mean = rest[0] if ctx.with_moments else None
    operator = getattr(torch.ops, NAMESPACE).hidden_terms_backward
    return *_by_argument(ctx, operator(*pairs, mean, list(gradients))), None


def _save_statistics(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _save(ctx, inputs, output, *inputs[_COUNT:], *output)


def _statistics_gradient(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
    pairs, (scale, targets, *saved) = _saved(ctx)
    operator = getattr(torch.ops, NAMESPACE).hidden_statistics_backward
    *found, grad_scale = operator(*pairs, scale, targets, saved, list(gradients))
    return *_by_argument(ctx, found), grad_scale.to(scale.dtype).reshape(scale.shape), None


def _register() -> None:
    implementations = (_terms, _terms_backward, _statistics, _statistics_backward)
    fakes = (_fake_terms, _fake_gradients, _fake_statistics, _fake_statistics_backward)
    for name, implementation, fake in zip(_SCHEMAS, implementations, fakes, strict=True):
        operator = f"{NAMESPACE}::{name}"
        torch.library.define(operator, _SCHEMAS[name])
        torch.library.impl(operator, "CompositeExplicitAutograd", _in_its_precision(implementation))
        torch.library.register_fake(operator, fake)
    for name, gradient, save in (
        ("hidden_terms", _terms_gradient, _save_terms),
        ("hidden_statistics", _statistics_gradient, _save_statistics),
    ):
        torch.library.register_autograd(f"{NAMESPACE}::{name}", gradient, setup_context=save)


_register()
