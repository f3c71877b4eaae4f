"""GARE's three regularizers of the increments (NeurIPS 2025)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from garevla.increments.base import Diversity, Increments, Moments
from garevla.utils.numerics import safe_sqrt

Reduction = Literal["sum", "mean"]


def trust_region(increments: Increments, trust_floor: float = 0.5) -> Tensor:
    """Trust region: −mean_i Var_j ‖Δ_ij‖ (unbiased variance over the videos of each text).

    Args:
        increments: of A texts and B videos.
        trust_floor: λ_lower; exactly 0, with no gradient, once the value is below −trust_floor.

    Returns:
        0-d tensor in [−trust_floor, 0]; of one video, which has no variance, 0 with no gradient.
    """
    norm = increments.norm
    if norm.shape[1] < 2:
        return norm.new_zeros(())
    return trust_region_of_variance(norm.var(dim=1), trust_floor)


def trust_region_of_variance(norm_variance: Tensor, trust_floor: float) -> Tensor:
    """:func:`trust_region` from the variances (A) of each text's increment norms."""
    value = -norm_variance.mean()
    return torch.where(value < -trust_floor, torch.zeros_like(value), value)


def information_bottleneck(increments: Increments, reduction: Reduction = "sum") -> Tensor:
    """Information bottleneck: mean_j KL(N(μ_j, diag σ_j²) ‖ N(0, I)) over the texts' increments.

    μ_j = mean_i Δ_ij, σ_j = std_i Δ_ij (unbiased) + 1e-6.

    Args:
        increments: of A texts and B videos.
        reduction: over the D feature dimensions: ``"sum"`` as in the published code, ``"mean"``
            as the paper states it (goes with β = 0.07).

    Returns:
        0-d tensor, at least 0; of one text, which has no variance, 0 with no gradient.

    Raises:
        ValueError: an unknown reduction.
    """
    check_reduction(reduction)
    if increments.norm.shape[0] < 2:
        return increments.norm.new_zeros(())
    return bottleneck_of_moments(increments.moments(), reduction)


def bottleneck_of_moments(moments: Moments, reduction: Reduction) -> Tensor:
    """:func:`information_bottleneck` from the increments' mean and variance over the texts."""
    mu, sigma = moments.mean, safe_sqrt(moments.variance) + 1e-6
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
        0-d tensor, at most about 0; of one video, whose increments are no more than one direction
        a text, 0 with no gradient.

    Raises:
        BackendUnavailableError: the requested backend cannot run here.
    """
    if increments.norm.shape[1] < 2:
        return increments.norm.new_zeros(())
    return increments.directional_diversity(Diversity(alpha, samples=None), backend)


def draw_samples(num_texts: int, num_videos: int, per_text: int, device: torch.device) -> Tensor:
    """Videos (A, n) int64 for an estimate of the directional diversity, distinct for each text.

    Windows of one random permutation: every pair of videos is as likely as any other. Drawn from
    the device's global generator, which ``torch.manual_seed`` seeds.
    """
    order = torch.randperm(num_videos, device=device)
    start = torch.randint(num_videos, (num_texts, 1), device=device)
    return order[(start + torch.arange(per_text, device=device)) % num_videos]


def check_reduction(reduction: str) -> None:
    """Raise ValueError unless it is ``"sum"`` or ``"mean"``."""
    if reduction not in ("sum", "mean"):
        raise ValueError(f"reduction must be 'sum' or 'mean', got {reduction!r}")
