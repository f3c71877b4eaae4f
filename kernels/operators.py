"""The pair operators, registered with torch.library under ``garevla_triton``.

``factors`` are rows, frame_mask, key_offset, key_bias, mean_frame, value_gram, hidden_gram,
basis_gram, frame_gram and basis_frame; gradients are in the order (text, rows, key_offset, …).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from garevla.kernels import pair_backward, pair_scores
from garevla.kernels import pair_statistics as statistics
from garevla.kernels.arguments import PairArguments

_NAMESPACE = "garevla_triton"
_PAIR = "Tensor text, Tensor[] factors, float pool_temperature, float[] layer_norm_eps"
_PAIR += ", str precision"
_SCHEMAS = {
    "pair_similarity": f"({_PAIR}) -> Tensor",
    "pair_terms": f"({_PAIR}) -> (Tensor, Tensor, Tensor)",
    "pair_terms_backward": (
        f"({_PAIR}, Tensor? grad_similarity, Tensor? grad_coefficients, Tensor? grad_norm) "
        "-> Tensor[]"
    ),
    "pair_statistics": (
        f"({_PAIR}, Tensor logit_scale, Tensor targets, Tensor? samples) -> "
        "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
    ),
    "pair_statistics_backward": (
        f"({_PAIR}, Tensor logit_scale, Tensor targets, Tensor? samples, Tensor row_logsumexp, "
        "Tensor column_logsumexp, Tensor norm_mean, Tensor coefficient_mean, Tensor[] gradients, "
        "Tensor? grad_sampled) -> Tensor[]"
    ),
}
# As many arguments come from the pairs.
_COUNT = 5


def pair_similarity(*pair: Any) -> Tensor:
    return pair_scores.pair_scores(PairArguments(*pair), with_terms=False)[0]


def pair_terms(*pair: Any) -> tuple[Tensor, Tensor, Tensor]:
    return pair_scores.pair_scores(PairArguments(*pair), with_terms=True)


def pair_terms_backward(*arguments: Any) -> list[Tensor]:
    pair = PairArguments(*arguments[:_COUNT])
    return pair_backward.pair_terms_backward(pair, *arguments[_COUNT:])


def pair_statistics(*arguments: Any) -> tuple[Tensor, ...]:
    return statistics.pair_statistics(PairArguments(*arguments[:_COUNT]), *arguments[_COUNT:])


def pair_statistics_backward(*arguments: Any) -> list[Tensor]:
    pair = PairArguments(*arguments[:_COUNT])
    return pair_backward.pair_statistics_backward(pair, *arguments[_COUNT:])


def _like(text: Tensor, factors: list[Tensor]) -> list[Tensor]:
    _check_devices(text, factors)
    rows, _, *others = factors
    return [text.new_empty(tensor.shape) for tensor in (text, rows, *others)]


def _check_devices(text: Tensor, factors: list[Tensor]) -> None:
    for factor in factors:
        if factor.device != text.device:
            raise ValueError(f"factors are on {factor.device}, text on {text.device}")


def _fake_similarity(text: Tensor, factors: list[Tensor], *_: Any) -> Tensor:
    _check_devices(text, factors)
    return text.new_empty(factors[0].shape[0], text.shape[0])


def _fake_terms(text: Tensor, factors: list[Tensor], *_: Any) -> tuple[Tensor, ...]:
    _check_devices(text, factors)
    texts, (videos, basis) = text.shape[0], factors[7].shape[:2]
    shapes = (videos, texts), (videos, basis, texts), (videos, texts)
    return tuple(text.new_empty(shape) for shape in shapes)


def _fake_statistics(text: Tensor, factors: list[Tensor], *others: Any) -> tuple[Tensor, ...]:
    samples = others[-1]
    _check_devices(text, factors)
    texts, (videos, basis) = text.shape[0], factors[7].shape[:2]
    sampled = (0, 0, basis) if samples is None else (*samples.shape, basis)
    rows, moments = (texts,), ((videos, basis), (videos, basis, basis))
    shapes = rows, (videos,), rows, rows, rows, *moments, sampled
    return tuple(text.new_empty(shape) for shape in shapes)


def _fake_terms_backward(text: Tensor, factors: list[Tensor], *_: Any) -> list[Tensor]:
    return _like(text, factors)


def _fake_statistics_backward(text: Tensor, factors: list[Tensor], *_: Any) -> list[Tensor]:
    return [*_like(text, factors), text.new_empty(())]


def _first_derivative_only() -> None:
    if torch.is_grad_enabled():
        raise RuntimeError(
            "the triton backend has no second derivatives (create_graph=True): use backend='eager'"
        )


def _by_argument(gradients: list[Tensor]) -> tuple[Tensor, list[Tensor | None]]:
    text, rows, *others = gradients
    return text, [rows, None, *others]


def _save_pairs(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    text, factors, *ctx.constants = inputs
    ctx.save_for_backward(text, *factors)


def _similarity_gradient(ctx: Any, grad_similarity: Tensor) -> tuple[Any, ...]:
    return _terms_gradient(ctx, grad_similarity, None, None)


def _terms_gradient(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:
    _first_derivative_only()
    text, *factors = ctx.saved_tensors
    found = torch.ops.garevla_triton.pair_terms_backward(text, factors, *ctx.constants, *gradients)
    return *_by_argument(found), None, None, None


def _save_statistics(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    text, factors, *ctx.constants, scale, targets, samples = inputs
    row, column, _, norm_mean, _, coefficient_mean, _, _ = output
    ctx.has_samples = samples is not None
    saved = [scale, targets, row, column, norm_mean, coefficient_mean]
    ctx.save_for_backward(*saved, *([samples] if ctx.has_samples else []), text, *factors)


def _statistics_gradient(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
    _first_derivative_only()
    scale, targets, row, column, norm_mean, coefficient_mean, *rest = ctx.saved_tensors
    samples = rest.pop(0) if ctx.has_samples else None
    text, *factors = rest
    # The mean of ‖Δ‖ is for the backward pass alone.
    grad_row, grad_column, grad_target, _, grad_variance, grad_mean, grad_cov, grad_sampled = (
        gradients
    )
    *found, grad_scale = torch.ops.garevla_triton.pair_statistics_backward(
        text,
        factors,
        *ctx.constants,
        scale,
        targets,
        samples,
        row,
        column,
        norm_mean,
        coefficient_mean,
        [grad_row, grad_column, grad_target, grad_variance, grad_mean, grad_cov],
        grad_sampled if ctx.has_samples else None,
    )
    grad_scale = grad_scale.to(scale.dtype).reshape(scale.shape)
    return *_by_argument(found), None, None, None, grad_scale, None, None


def _register() -> None:
    implementations = {
        "pair_similarity": (pair_similarity, _fake_similarity),
        "pair_terms": (pair_terms, _fake_terms),
        "pair_terms_backward": (pair_terms_backward, _fake_terms_backward),
        "pair_statistics": (pair_statistics, _fake_statistics),
        "pair_statistics_backward": (pair_statistics_backward, _fake_statistics_backward),
    }
    for name, (implementation, fake) in implementations.items():
        full_name = f"{_NAMESPACE}::{name}"
        torch.library.define(full_name, _SCHEMAS[name])
        torch.library.impl(full_name, ("cpu", "cuda"), implementation)
        torch.library.register_fake(full_name, fake)
    autograd = torch.library.register_autograd
    autograd(f"{_NAMESPACE}::pair_similarity", _similarity_gradient, setup_context=_save_pairs)
    autograd(f"{_NAMESPACE}::pair_terms", _terms_gradient, setup_context=_save_pairs)
    autograd(f"{_NAMESPACE}::pair_statistics", _statistics_gradient, setup_context=_save_statistics)


_register()
