"""The directional diversity of a tile's texts, from increments that lie in memory."""

from __future__ import annotations

from torch import Tensor

from garevla.ops.products import batched

LOG_FLOOR = 1e-8


def diversity(increments: Tensor, norm: Tensor, alpha: float) -> Tensor:
    """Σ_i log(mean_{j,k} exp(−α(1 − cos(Δ_ij, Δ_ik))) + 1e-8) over the tile's texts, 0-d.

    Args:
        increments: (B, a, D), of all videos.
        norm: (B, a), their lengths.
        alpha: α.
    """
    return _kernel(increments, norm, alpha)[2].log().sum()


def diversity_gradient(
    increments: Tensor, norm: Tensor, alpha: float, grad_output: Tensor
) -> Tensor:
    """The gradient (B, a, D) of :func:`diversity`; arguments as there."""
    unit, kernel, mean = _kernel(increments, norm, alpha)
    # The kernel is symmetric: each direction meets it as row and as column.
    slope = 2 * alpha * grad_output / (len(increments) ** 2 * mean)
    grad = batched(kernel, unit.transpose(0, 1)).transpose(0, 1).contiguous()
    short = 1 / norm.clamp_min(1e-12)
    radial = (grad * unit).sum(dim=2, keepdim=True)
    return grad.addcmul_(radial, unit, value=-1).mul_((slope * short).unsqueeze(2))


def _kernel(increments: Tensor, norm: Tensor, alpha: float) -> tuple[Tensor, Tensor, Tensor]:
    """Unit increments (B, a, D), exp(−α(1 − cosine)) (a, B, B), and its means (a)."""
    unit = increments / norm.clamp_min(1e-12).unsqueeze(2)
    by_text = unit.transpose(0, 1)
    kernel = batched(by_text, by_text.mT).sub_(1).mul_(alpha).exp_()
    return unit, kernel, kernel.mean(dim=(1, 2)) + LOG_FLOOR
