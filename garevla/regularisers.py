"""GARE's three regularisers on the increments, from their factors (GARE, NeurIPS 2025)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from garevla.pairs import CHUNK_ELEMENTS, Increments, safe_sqrt


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
    if increments.norm.shape[0] < 2:
        raise ValueError("trust_region needs at least 2 videos, got 1")
    value = -increments.norm.var(dim=0).mean()
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
    if reduction not in ("sum", "mean"):
        raise ValueError(f"reduction must be 'sum' or 'mean', got {reduction!r}")
    coefficients, basis, _ = increments
    num_texts = coefficients.shape[2]
    if num_texts < 2:
        raise ValueError("information_bottleneck needs at least 2 texts, got 1")
    # Relative to one text first: where all texts agree (a video of one frame), the variance must
    # come out as 0 and not as the square of a rounding error, whose logarithm counts.
    relative = coefficients - coefficients[:, :, :1]
    relative_mean = relative.mean(dim=2, keepdim=True)
    centred = relative - relative_mean
    mean = coefficients[:, :, :1] + relative_mean
    covariance = centred @ centred.mT / (num_texts - 1)
    mu = (mean.mT @ basis).squeeze(1)
    sigma = safe_sqrt((basis * (covariance @ basis)).sum(dim=1)) + 1e-6
    divergence = 0.5 * (mu.square() + sigma.square() - 1) - sigma.log()
    return divergence.mean(dim=0).sum() if reduction == "sum" else divergence.mean()


def direction_diversity(increments: Increments, alpha: float = 2.0) -> Tensor:
    """Directional diversity: mean_i log(mean_{j,k} exp(−α(1 − cos(Δ_ij, Δ_ik))) + 1e-8).

    The one cubic term, A·B²·D multiply-adds. The unit increments of a few texts at a time are
    formed, used for the value and its gradient at once, and thrown away.

    Args:
        increments: of A texts and B videos; j = k is included in the mean.
        alpha: α, the concentration; published: 2.

    Returns:
        0-d tensor, at most about 0.
    """
    coefficients, basis, norm = increments
    unit = coefficients / norm.clamp_min(1e-12).unsqueeze(1)
    return _DirectionDiversity.apply(unit, basis, alpha)


class _DirectionDiversity(torch.autograd.Function):
    """Computes the gradient in the forward pass, where the cosines are at hand anyway.

    Saving it (A·B·K + B·K·D numbers) spares the backward pass two of the four cubic products.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx, unit: Tensor, basis: Tensor, alpha: float
    ) -> Tensor:  # unit (B, K, A), basis (B, K, D)
        num_videos, _, num_texts = unit.shape
        step = max(1, CHUNK_ELEMENTS // (num_videos * (num_videos + basis.shape[2])))
        with_gradient = any(ctx.needs_input_grad)
        total = unit.new_zeros(())
        unit_gradient = torch.empty_like(unit) if with_gradient else None
        basis_gradient = torch.zeros_like(basis) if with_gradient else None
        for start in range(0, num_texts, step):
            chunk = unit[:, :, start : start + step]
            directions = (chunk.mT @ basis).transpose(0, 1)  # (a, B, D)
            kernel = (directions @ directions.mT).sub_(1).mul_(alpha).exp_()  # (a, B, B)
            mean = kernel.mean(dim=(1, 2)) + 1e-8
            total += mean.log().sum()
            if with_gradient:
                # The kernel is symmetric: each direction meets it as row and as column.
                slope = 2 * alpha / (num_videos**2 * num_texts * mean)
                gradient = (kernel @ directions).mul_(slope[:, None, None]).transpose(0, 1)
                unit_gradient[:, :, start : start + step] = basis @ gradient.mT
                basis_gradient += chunk @ gradient
        if with_gradient:
            ctx.save_for_backward(unit_gradient, basis_gradient)
        return total / num_texts

    @staticmethod
    @once_differentiable
    def backward(
        ctx: FunctionCtx, grad_output: Tensor
    ) -> tuple[Tensor | None, Tensor | None, None]:
        unit_gradient, basis_gradient = ctx.saved_tensors
        return grad_output * unit_gradient, grad_output * basis_gradient, None
