"""The directional diversity from factors of the increments, exact or sampled, with gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from garevla.ops.derivatives import first_derivative_only
from garevla.ops.eager.chunks import CHUNK_ELEMENTS
from garevla.ops.products import batched

_LOG_FLOOR = 1e-8


def direction(unit_coefficients: Tensor, basis: Tensor, alpha: float) -> Tensor:
    """mean_i log(mean_{j,k} exp(−α(1 − Δ̂_ij·Δ̂_ik)) + 1e-8), exactly.

    The one cubic term, A·B²·D multiply-adds. The unit increments of a few texts at a time are
    formed, used for the value and its gradient at once, and thrown away.

    Args:
        unit_coefficients: (B, K, A), of unit increments Δ̂_ij.
        basis: (B, K, D).
        alpha: α.
    """
    return _Direction.apply(unit_coefficients, basis, alpha)


def sampled_direction(coefficients: Tensor, basis: Tensor, samples: Tensor, alpha: float) -> Tensor:
    """:func:`direction` with its inner mean estimated from n videos per text, in O(A·n²·D).

    The estimate of the inner mean is unbiased: pairs j = k count exactly 1/B, pairs j ≠ k are
    averaged over the sample.

    Args:
        coefficients: (A, n, K) of the increments Δ_ij of the sampled pairs, n ≥ 2.
        basis: (B, K, D).
        samples: (A, n) int64, the sampled videos of each text.
        alpha: α.
    """
    return _SampledDirection.apply(coefficients, basis, samples, alpha)


class _Direction(torch.autograd.Function):
    """Computes the gradient in the forward pass, where the cosines are at hand anyway.

    Saving it (A·B·K + B·K·D numbers) spares the backward pass two of the four cubic products.
    """

    @staticmethod
    def forward(
        ctx: Any, unit: Tensor, basis: Tensor, alpha: float
    ) -> Tensor:  # unit (B, K, A), basis (B, K, D)
        num_videos, _, num_texts = unit.shape
        step = max(1, CHUNK_ELEMENTS // (num_videos * (num_videos + basis.shape[2])))
        total = unit.new_zeros(())
        gradients = None
        if any(ctx.needs_input_grad):
            gradients = torch.empty_like(unit), torch.zeros_like(basis)
        for start in range(0, num_texts, step):
            chunk = unit[:, :, start : start + step]
            directions = batched(chunk.mT, basis).transpose(0, 1)  # (a, B, D)
            kernel = batched(directions, directions.mT).sub_(1).mul_(alpha).exp_()  # (a, B, B)
            mean = kernel.mean(dim=(1, 2)) + _LOG_FLOOR
            total += mean.log().sum()
            if gradients is not None:
                unit_gradient, basis_gradient = gradients
                # The kernel is symmetric: each direction meets it as row and as column.
                slope = 2 * alpha / (num_videos**2 * num_texts * mean)
                gradient = batched(kernel, directions).mul_(slope[:, None, None])
                gradient = gradient.transpose(0, 1)
                unit_gradient[:, :, start : start + step] = batched(basis, gradient.mT)
                basis_gradient += batched(chunk, gradient)
        if gradients is not None:
            ctx.save_for_backward(*gradients)
        return total / num_texts

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        first_derivative_only("the directional diversity")
        unit_gradient, basis_gradient = ctx.saved_tensors
        return grad_output * unit_gradient, grad_output * basis_gradient, None


class _SampledDirection(torch.autograd.Function):
    """As :class:`_Direction`; saves gradients of A·n·K + B·K·D numbers."""

    @staticmethod
    def forward(
        ctx: Any, coefficients: Tensor, basis: Tensor, samples: Tensor, alpha: float
    ) -> Tensor:
        (num_texts, per_text, basis_size), dim = coefficients.shape, basis.shape[2]
        num_videos = basis.shape[0]
        step = max(1, CHUNK_ELEMENTS // (per_text * (basis_size * dim + per_text)))
        total = coefficients.new_zeros(())
        gradients = None
        if any(ctx.needs_input_grad):
            gradients = torch.empty_like(coefficients), torch.zeros_like(basis)
        others = per_text * (per_text - 1)
        for start in range(0, num_texts, step):
            chunk, videos = coefficients[start : start + step], samples[start : start + step]
            vectors = basis[videos]  # (a, n, K, D)
            increments = (chunk.unsqueeze(2) @ vectors).squeeze(2)
            norm = increments.norm(dim=2, keepdim=True).clamp_min(1e-12)
            directions = increments / norm  # (a, n, D)
            kernel = (directions @ directions.mT).sub_(1).mul_(alpha).exp_()
            kernel.diagonal(dim1=1, dim2=2).zero_()
            off_diagonal = kernel.sum(dim=(1, 2)) * ((num_videos - 1) / others)
            mean = (1 + off_diagonal) / num_videos + _LOG_FLOOR
            total += mean.log().sum()
            if gradients is not None:
                coefficient_gradient, basis_gradient = gradients
                slope = 2 * alpha * (num_videos - 1) / (num_videos * others * num_texts * mean)
                gradient = (kernel @ directions).mul_(slope[:, None, None])
                radial = (gradient * directions).sum(dim=2, keepdim=True)
                gradient = (gradient - radial * directions) / norm
                coefficient_gradient[start : start + step] = (
                    vectors @ gradient.unsqueeze(3)
                ).squeeze(3)
                basis_gradient.index_put_(
                    (videos.flatten(),),
                    (chunk.unsqueeze(3) * gradient.unsqueeze(2)).flatten(0, 1),
                    accumulate=True,
                )
        if gradients is not None:
            ctx.save_for_backward(*gradients)
        return total / num_texts

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        first_derivative_only("the directional diversity")
        coefficient_gradient, basis_gradient = ctx.saved_tensors
        return grad_output * coefficient_gradient, grad_output * basis_gradient, None, None
