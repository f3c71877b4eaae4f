"""The published GARE formulas, materialised: the baseline of every benchmark, the tests' oracle.

Straight from the equations, (A, B, D) tensors and a network evaluation per pair included, with
the one repair that padded frames are masked everywhere. Works in any floating dtype.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Independent, Normal, kl_divergence

from garevla import CrossAttentionPsi


class PublishedPairs(NamedTuple):
    similarity: Tensor  # (A, B)
    increments: Tensor  # (A, B, D)


def published_increments(
    gap: Tensor,
    frame_features: Tensor,
    psi: CrossAttentionPsi,
    frame_mask: Tensor,
    dropout_mask: Tensor | float = 1.0,
) -> Tensor:
    """ψ of the paper, evaluated once for each gap: (A, B, D) gaps → (A, B, D) increments.

    ``dropout_mask`` multiplies linear1's output; shape broadcastable to (A, B, D).
    """
    dim = gap.shape[-1]
    heads = psi.num_heads
    layer = psi.layers[0]
    attention = layer.cross_attn
    query = attention.q_proj(layer.layer_norm1(gap)).unflatten(-1, (heads, dim // heads))
    context = layer.layer_norm1(frame_features)
    key = attention.k_proj(context).unflatten(-1, (heads, dim // heads))
    value = attention.v_proj(context).unflatten(-1, (heads, dim // heads))
    logits = torch.einsum("abhe,bfhe->abhf", query, key) / (dim // heads) ** 0.5
    logits = logits.masked_fill(~frame_mask[None, :, None, :], -torch.inf)
    attended = torch.einsum("abhf,bfhe->abhe", logits.softmax(-1), value)
    hidden = layer.layer_norm2(attention.out_proj(attended.flatten(2)))
    hidden = layer.layer_norm3(hidden + layer.linear1(hidden) * dropout_mask)
    return psi.mean_proj(hidden)


def published_pairs(
    text_features: Tensor,
    frame_features: Tensor,
    psi: CrossAttentionPsi,
    frame_mask: Tensor | None = None,
    *,
    pool_temperature: float = 3.0,
    dropout_mask: Tensor | float = 1.0,
) -> PublishedPairs:
    """Similarity (A, B) and increments (A, B, D), every step of which holds A·B·D numbers."""
    if frame_mask is None:
        frame_mask = torch.ones(frame_features.shape[:2], dtype=torch.bool)
    frame_mask = frame_mask.to(torch.bool)
    frames = torch.where(frame_mask.unsqueeze(-1), frame_features, 0.0)
    count = frame_mask.sum(1, keepdim=True)
    gap = (frames.sum(1) / count).unsqueeze(0) - text_features.unsqueeze(1)
    increments = published_increments(gap, frames, psi, frame_mask, dropout_mask)
    pool = torch.einsum("ad,bfd->abf", text_features, frames) / pool_temperature
    pool = pool.masked_fill(~frame_mask, -torch.inf).softmax(-1)
    pooled = torch.einsum("abf,bfd->abd", pool, frames)
    corrected = F.normalize(text_features.unsqueeze(1) + increments, dim=-1)
    similarity = torch.einsum("abd,abd->ab", corrected, F.normalize(pooled, dim=-1))
    return PublishedPairs(similarity, increments)


def published_info_nce(similarity: Tensor, logit_scale: Tensor | float) -> Tensor:
    logits = similarity * logit_scale
    diagonal = torch.arange(logits.shape[0], device=logits.device)
    return (F.cross_entropy(logits, diagonal) + F.cross_entropy(logits.T, diagonal)) / 2


def published_trust_region(increments: Tensor, trust_floor: float = 0.5) -> Tensor:
    value = -increments.norm(dim=2).var(dim=1).mean()
    return value if value >= -trust_floor else value.new_zeros(())


def published_bottleneck(increments: Tensor, *, over_features: str = "sum") -> Tensor:
    mu, sigma = increments.mean(dim=0), increments.std(dim=0) + 1e-6
    prior = Normal(torch.zeros_like(mu), torch.ones_like(sigma))
    if over_features == "mean":
        return kl_divergence(Normal(mu, sigma), prior).mean()
    return kl_divergence(Independent(Normal(mu, sigma), 1), Independent(prior, 1)).mean()


def published_direction(increments: Tensor, alpha: float = 2.0) -> Tensor:
    """The published loop over texts. Indexing as it does, autograd adds up one (A, B, D) tensor of
    mostly zeros per text in the backward pass."""
    directions = F.normalize(increments, dim=2)
    total = increments.new_zeros(())
    for i in range(len(directions)):
        total = total + _log_mean_kernel(directions[i], alpha)
    return total / len(directions)


def unbound_direction(increments: Tensor, alpha: float = 2.0) -> Tensor:
    """The same loop without that cost: the texts are taken apart once."""
    directions = F.normalize(increments, dim=2)
    return torch.stack([_log_mean_kernel(unit, alpha) for unit in directions.unbind()]).mean()


def _log_mean_kernel(unit: Tensor, alpha: float) -> Tensor:
    return torch.log(torch.exp(-alpha * (1 - unit @ unit.T)).mean() + 1e-8)


def published_loss(
    text_features: Tensor,
    frame_features: Tensor,
    psi: CrossAttentionPsi,
    logit_scale: Tensor | float,
    frame_mask: Tensor | None = None,
    *,
    pool_temperature: float = 3.0,
    alpha: float = 2.0,
    beta: float = 1e-4,
    lambda_direction: float = 0.01,
    lambda_trust: float = 0.01,
    trust_floor: float = 0.5,
    direction: Callable[[Tensor, float], Tensor] = published_direction,
) -> Tensor:
    """The whole published training loss."""
    similarity, increments = published_pairs(
        text_features, frame_features, psi, frame_mask, pool_temperature=pool_temperature
    )
    loss = published_info_nce(similarity, logit_scale)
    loss = loss + beta * published_bottleneck(increments)
    loss = loss + lambda_trust * published_trust_region(increments, trust_floor)
    if lambda_direction:
        loss = loss + lambda_direction * direction(increments, alpha)
    return loss
