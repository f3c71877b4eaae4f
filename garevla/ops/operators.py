"""The pair operators of torch.library: what is the same for every compiled backend.

A backend defines, in a namespace, ``pair_similarity``, ``pair_terms``, ``pair_statistics`` and the
backward operators of the last two. All take the text features, the factors in the order of
:data:`PAIR_FACTORS`, then the backend's constants. Gradients come in the same order, text first,
without the mask, which has none.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from garevla.increments.low_rank.factors import PAIR_FACTORS, TextFactors, VideoFactors
from garevla.ops.derivatives import first_derivative_only
from garevla.ops.eager.pairs import PairTerms
from garevla.ops.eager.statistics import CoefficientStatistics

_NAMES = list(PAIR_FACTORS)
_MASK = _NAMES.index("frame_mask")


def pair_operations(
    namespace: str, constants: Callable[[], tuple[Any, ...]] = tuple
) -> dict[str, Callable[..., Any]]:
    """The operations that call a namespace's operators.

    Args:
        namespace: of torch.library; the operators are looked up when they are called.
        constants: what the operators take after the pool temperature and LayerNorm's eps.
    """

    def call(operator: str, text: TextFactors, video: VideoFactors, *others: Any) -> Any:
        pool_temperature, *rest = others
        factors = video.operator_arguments()
        check_types(text.features, factors)
        return getattr(getattr(torch.ops, namespace), operator)(
            text.features,
            factors,
            pool_temperature,
            list(video.layer_norm_eps),
            *constants(),
            *rest,
        )

    def pair_similarity(text: TextFactors, video: VideoFactors, pool_temperature: float) -> Tensor:
        """As the eager operation; nothing but the scores is kept."""
        return call("pair_similarity", text, video, pool_temperature)

    def pair_terms(text: TextFactors, video: VideoFactors, pool_temperature: float) -> PairTerms:
        """As the eager operation."""
        return PairTerms(*call("pair_terms", text, video, pool_temperature))

    def pair_statistics(
        text: TextFactors,
        video: VideoFactors,
        pool_temperature: float,
        logit_scale: Tensor,
        targets: Tensor,
        samples: Tensor | None = None,
    ) -> CoefficientStatistics:
        """As the eager operation, in a stream of tiles: no A × B tensor, forward or backward."""
        row, column, target, norm, variance, mean, covariance, sampled, _ = call(
            "pair_statistics", text, video, pool_temperature, logit_scale, targets, samples
        )
        sampled = None if samples is None else sampled
        return CoefficientStatistics(row, column, target, norm, variance, mean, covariance, sampled)

    functions = (pair_similarity, pair_terms, pair_statistics)
    return {function.__name__: function for function in functions}


def register(namespace: str, backend: str, num_constants: int) -> None:
    """Give the operators of a namespace their fake versions and their gradients.

    Args:
        namespace: of torch.library; the operators are defined there.
        backend: its name, for errors.
        num_constants: how many arguments follow the factors before the operator's own.
    """
    operators = getattr(torch.ops, namespace)

    def save_pairs(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        text, factors, *ctx.constants = inputs
        ctx.save_for_backward(text, *factors)

    def terms_gradient(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:
        first_derivative_only(f"the {backend} backend")
        text, *factors = ctx.saved_tensors
        found = operators.pair_terms_backward(text, factors, *ctx.constants, *gradients)
        return *_by_argument(found), *[None] * num_constants

    def similarity_gradient(ctx: Any, grad_similarity: Tensor) -> tuple[Any, ...]:
        return terms_gradient(ctx, grad_similarity, None, None)

    def save_statistics(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        text, factors, *ctx.constants, scale, targets, samples = inputs
        row, column, _, norm_mean, _, coefficient_mean, _, _, remainder = output
        ctx.has_samples = samples is not None
        saved = [scale, targets, row, column, norm_mean, coefficient_mean, remainder]
        ctx.save_for_backward(*saved, *([samples] if ctx.has_samples else []), text, *factors)

    def statistics_gradient(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        first_derivative_only(f"the {backend} backend")
        *of_logits, grad_mean, grad_variance, grad_center, grad_covariance = gradients[:7]
        grad_sampled, _ = gradients[7:]
        scale, targets, row, column, norm_mean, center, remainder, *rest = ctx.saved_tensors
        samples = rest.pop(0) if ctx.has_samples else None
        text, *factors = rest
        norm_mean = _center_of_gradient(norm_mean, grad_mean, grad_variance, len(column))
        grad_center = grad_center - _of_remainder(remainder, grad_covariance, len(text))
        *found, grad_scale = operators.pair_statistics_backward(
            text,
            factors,
            *ctx.constants,
            scale,
            targets,
            samples,
            row,
            column,
            norm_mean,
            center,
            [*of_logits, grad_variance, grad_center, grad_covariance],
            grad_sampled if ctx.has_samples else None,
        )
        grad_scale = grad_scale.to(scale.dtype).reshape(scale.shape)
        return *_by_argument(found), *[None] * num_constants, grad_scale, None, None

    fakes = {
        "pair_similarity": _fake_similarity,
        "pair_terms": _fake_terms,
        "pair_terms_backward": _fake_terms_backward,
        "pair_statistics": _fake_statistics,
        "pair_statistics_backward": _fake_statistics_backward,
    }
    for name, fake in fakes.items():
        torch.library.register_fake(f"{namespace}::{name}", fake)
    autograd = torch.library.register_autograd
    autograd(f"{namespace}::pair_similarity", similarity_gradient, setup_context=save_pairs)
    autograd(f"{namespace}::pair_terms", terms_gradient, setup_context=save_pairs)
    autograd(f"{namespace}::pair_statistics", statistics_gradient, setup_context=save_statistics)


def _center_of_gradient(
    norm_mean: Tensor, grad_mean: Tensor, grad_variance: Tensor, num_videos: int
) -> Tensor:
    """(A) from which ‖Δ_ij‖'s deviations make its gradient.

    2/(B − 1) grad_variance (‖Δ_ij‖ − mean) + grad_mean/B is the first term about another center.
    Where the variance has no gradient, the mean's is lost.
    """
    slope = grad_variance * (2 * num_videos)
    shift = (num_videos - 1) * grad_mean / slope
    return norm_mean - torch.where(slope == 0, 0.0, shift)


def _of_remainder(remainder: Tensor, grad_covariance: Tensor, num_texts: int) -> Tensor:
    """(B, K) that the coefficients' mean has too much of gradient where their deviations are taken
    from the rounded mean.

    They then do not add up to 0, and where they are small, the covariance's gradient is large.
    """
    slope = grad_covariance + grad_covariance.mT
    found = (slope @ remainder.unsqueeze(2)).squeeze(2)
    return found * (num_texts / max(num_texts - 1, 1))


def check_devices(text: Tensor, factors: list[Tensor]) -> None:
    """Raise ValueError unless all tensors share a device."""
    for factor in factors:
        if factor.device != text.device:
            raise ValueError(f"factors are on {factor.device}, text on {text.device}")


def check_types(text: Tensor, factors: list[Tensor]) -> None:
    """Raise TypeError unless all factors but the mask have the texts' type."""
    for number, factor in enumerate(factors):
        wanted = torch.bool if number == _MASK else text.dtype
        if factor.dtype != wanted:
            raise TypeError(f"{_NAMES[number]} must be {wanted}, got {factor.dtype}")


def _by_argument(gradients: list[Tensor]) -> tuple[Tensor, list[Tensor | None]]:
    text, *factors = gradients
    return text, [*factors[:_MASK], None, *factors[_MASK:]]


def _sizes(text: Tensor, factors: list[Tensor]) -> tuple[int, int, int]:
    """A, B, K."""
    videos, basis, _ = factors[_NAMES.index("basis_gram")].shape
    return text.shape[0], videos, basis


def _fake_similarity(text: Tensor, factors: list[Tensor], *others: Any) -> Tensor:
    check_devices(text, factors)
    texts, videos, _ = _sizes(text, factors)
    return text.new_empty(videos, texts)


def _fake_terms(text: Tensor, factors: list[Tensor], *_: Any) -> tuple[Tensor, ...]:
    check_devices(text, factors)
    texts, videos, basis = _sizes(text, factors)
    shapes = (videos, texts), (videos, basis, texts), (videos, texts)
    return tuple(text.new_empty(shape) for shape in shapes)


def _fake_terms_backward(text: Tensor, factors: list[Tensor], *_: Any) -> list[Tensor]:
    check_devices(text, factors)
    with_gradient = [text, *factors[:_MASK], *factors[_MASK + 1 :]]
    # Contiguous, whatever the factors are.
    return [text.new_empty(tensor.shape) for tensor in with_gradient]


def _fake_statistics(text: Tensor, factors: list[Tensor], *others: Any) -> tuple[Tensor, ...]:
    samples = others[-1]
    check_devices(text, factors)
    texts, videos, basis = _sizes(text, factors)
    sampled = (0, 0, basis) if samples is None else (*samples.shape, basis)
    rows, moments = (texts,), ((videos, basis), (videos, basis, basis))
    shapes = rows, (videos,), rows, rows, rows, *moments, sampled, (videos, basis)
    return tuple(text.new_empty(shape) for shape in shapes)


def _fake_statistics_backward(text: Tensor, factors: list[Tensor], *_: Any) -> list[Tensor]:
    return [*_fake_terms_backward(text, factors), text.new_empty(())]
