"""GARE's three regularisers on the increments, from their factors (GARE, NeurIPS 2025)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from garevla.ops.backends import resolve_backend
from garevla.ops.eager.pairs import Increments, safe_sqrt
from garevla.ops.eager.statistics import coefficient_moments


def trust_region(increments: Increments, trust_floor: float = 0.5) -> Tensor:
    """Trust region: −mean_i Var_j ‖Δ_ij‖ (unbiased variance over the videos of each text).

    Args:
        increments: of A ≥ 1 texts and B ≥ 2 videos.
        trust_floor: λ_lower; exactly 0, with no gradient, once the value is below −trust_floor.

    Returns:
        0-d tensor in [−trust_floor, 0].

    Raises:
        ValueError: fewer than two videos, which have no variance.
    """
    num_videos = increments.norm.shape[0]
    variance = increments.norm.var(dim=0, correction=min(1, num_videos - 1))
    return trust_region_of_variance(variance, num_videos, trust_floor)


def trust_region_of_variance(norm_variance: Tensor, num_videos: int, trust_floor: float) -> Tensor:
    """:func:`trust_region` from the variances (A) of each text's increment norms."""
    if num_videos < 2:
        raise ValueError("trust_region needs at least 2 videos, got 1")
    value = -norm_variance.mean()
    return torch.where(value < -trust_floor, torch.zeros_like(value), value)


def information_bottleneck(
    increments: Increments, reduction: Literal["sum", "mean"] = "sum"
) -> Tensor:
    """Information bottleneck: mean_j KL(N(μ_j, diag σ_j²) ‖ N(0, I)) over the texts' increments.

    μ_j = mean_i Δ_ij and σ_j = std_i Δ_ij (unbiased) + 1e-6 follow from the first two moments of
    the coefficients.

    Args:
        increments: of A ≥ 2 texts.
        reduction: over the D feature dimensions: ``"sum"`` as in the published code, ``"mean"``
            as the paper states it (goes with β = 0.07).

    Returns:
        0-d tensor, at least 0.

    Raises:
        ValueError: fewer than two texts, or an unknown reduction.
    """
    coefficients, basis, _ = increments
    moments = coefficient_moments(coefficients)
    return bottleneck_of_moments(
        **moments, basis=basis, num_texts=coefficients.shape[2], reduction=reduction
    )


def bottleneck_of_moments(
    coefficient_mean: Tensor,
    coefficient_covariance: Tensor,
    basis: Tensor,
    num_texts: int,
    reduction: Literal["sum", "mean"],
) -> Tensor:
    """:func:`information_bottleneck` from the mean (B, K) and covariance (B, K, K) over texts."""
    if reduction not in ("sum", "mean"):
        raise ValueError(f"reduction must be 'sum' or 'mean', got {reduction!r}")
    if num_texts < 2:
        raise ValueError("information_bottleneck needs at least 2 texts, got 1")
    mu = (coefficient_mean.unsqueeze(1) @ basis).squeeze(1)
    sigma = safe_sqrt(_VarianceOfCombination.apply(coefficient_covariance, basis)) + 1e-6
    divergence = 0.5 * (mu.square() + sigma.square() - 1) - sigma.log()
    return divergence.mean(dim=0).sum() if reduction == "sum" else divergence.mean()


def direction_diversity(
    increments: Increments, alpha: float = 2.0, *, backend: str = "auto"
) -> Tensor:
    """Directional diversity: mean_i log(mean_{j,k} exp(−α(1 − cos(Δ_ij, Δ_ik))) + 1e-8).

    The one term that is cubic in the batch, and exact; see :class:`garevla.GareLoss` for an
    estimate where it is out of reach.

    Args:
        increments: of A texts and B videos; j = k is included in the mean.
        alpha: α, the concentration; published: 2.
        backend: as in :func:`garevla.gare_similarity`.

    Returns:
        0-d tensor, at most about 0.

    Raises:
        BackendUnavailableError: the requested backend cannot run here.
    """
    coefficients, basis, norm = increments
    unit = coefficients / norm.clamp_min(1e-12).unsqueeze(1)
    return resolve_backend(backend, basis.device).direction(unit, basis, alpha)


class _VarianceOfCombination(torch.autograd.Function):
    """E_·dᵀ Cov E_·d for each feature d: (B, K, K) symmetric, (B, K, D) → (B, D).

    Autograd would not see the symmetry and take a product more in backward.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, covariance: Tensor, basis: Tensor) -> Tensor:
        ctx.save_for_backward(covariance, basis)
        return (basis * (covariance @ basis)).sum(dim=1)

    @staticmethod
    def backward(ctx: FunctionCtx, grad_output: Tensor) -> tuple[Tensor, Tensor]:
        covariance, basis = ctx.saved_tensors
        weighted = basis * grad_output.unsqueeze(1)
        return weighted @ basis.mT, 2 * covariance @ weighted
