"""GARE (NeurIPS 2025, arXiv 2505.12499) as published: similarity, regularizers, loss.

Shapes: A texts, B videos of F frames, D features. Every pair's gap, increment and text-conditioned
video is an (A, B, D) tensor. One repair: padded frames take no part anywhere;
``padding="published"`` lets them, as the published code does, into the mean frame and the
attention. Works in any floating dtype; arguments are not checked.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Independent, Normal, kl_divergence

from garevla.increments.hidden.gap_mlp import GapMLPPsi
from garevla.increments.low_rank.cross_attention import CrossAttentionPsi
from garevla.ops.dropout import keep_mask
from garevla.utils.padding import Padding

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "silu": F.silu,
    "relu": F.relu,
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
}


class Pairs(NamedTuple):
    """What GARE computes for every pair."""

    similarity: Tensor  # (A, B)
    increments: Tensor  # (A, B, D)


def cross_attention_increments(
    gap: Tensor,
    frame_features: Tensor,
    psi: CrossAttentionPsi,
    frame_mask: Tensor,
    dropout_mask: Tensor | float = 1.0,
) -> Tensor:
    """The network ψ of the paper: Δ_ij = ψ(v̄_j − t_i; frames of j), evaluated for each pair.

    The gap attends to the video's frames; a residual linear layer and a projection follow, with a
    LayerNorm before each of the three. No residual around the attention, no activation.

    Args:
        gap: (A, B, D).
        frame_features: (B, F, D).
        frame_mask: (B, F) bool.
        dropout_mask: multiplies linear1's output; of a shape that broadcasts to (A, B, D).

    Returns:
        Δ, (A, B, D).
    """
    dim = gap.shape[-1]
    heads = psi.num_heads
    layer = psi.layer
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


def gap_mlp_increments(gap: Tensor, psi: GapMLPPsi, dropout_mask: Tensor | float = 1.0) -> Tensor:
    """ψ as a perceptron on the gap alone: Δ_ij = linear2(dropout(act(linear1(LN(gap))))).

    Args:
        gap: (A, B, D).
        dropout_mask: multiplies the hidden units; of a shape that broadcasts to (A, B, H).

    Returns:
        Δ, (A, B, D).
    """
    hidden = ACTIVATIONS[psi.activation](psi.linear1(psi.norm(gap)))
    return psi.linear2(hidden * dropout_mask)


def increments(
    gap: Tensor,
    frame_features: Tensor,
    psi: CrossAttentionPsi | GapMLPPsi,
    frame_mask: Tensor,
    dropout_mask: Tensor | float = 1.0,
) -> Tensor:
    """Δ (A, B, D) of either ψ; arguments as of :func:`cross_attention_increments`."""
    if isinstance(psi, GapMLPPsi):
        return gap_mlp_increments(gap, psi, dropout_mask)
    return cross_attention_increments(gap, frame_features, psi, frame_mask, dropout_mask)


def pair_dropout_mask(
    psi: CrossAttentionPsi | GapMLPPsi, seed: Tensor | int, num_texts: int, num_videos: int
) -> Tensor:
    """The pairs' dropout masks that ``garevla.dropout_seed(seed)`` stands for.

    Returns:
        (A, B, D) for a cross-attention, (A, B, H) for a gap MLP: 0 or 1 / (1 − p), in ψ's dtype.
    """
    weight = psi.linear2.weight if isinstance(psi, GapMLPPsi) else psi.mean_proj.weight
    texts = torch.arange(num_texts, device=weight.device)
    videos = torch.arange(num_videos, device=weight.device)
    # A text at a time: random words take far more memory than a mask.
    kept = [keep_mask(seed, psi.dropout, text, videos, weight.shape[1]) for text in texts]
    return torch.stack(kept).to(weight.dtype) / (1 - psi.dropout)


def pairs(
    text_features: Tensor,
    frame_features: Tensor,
    psi: CrossAttentionPsi | GapMLPPsi,
    frame_mask: Tensor | None = None,
    *,
    pool_temperature: float = 3.0,
    dropout_mask: Tensor | float = 1.0,
    padding: Padding = "ignored",
) -> Pairs:
    """The similarity s_ij = cos(t_i + Δ_ij, p_ij) of GARE, and the increments Δ_ij.

    p_ij = Σ_f softmax_f(t_i·v_jf / τ) v_jf is the text-conditioned video; its weights use t_i
    itself, not the corrected text.

    Args:
        text_features: t, (A, D), not normalized.
        frame_features: v, (B, F, D), not normalized.
        frame_mask: (B, F), True for a valid frame; None means all are.
        pool_temperature: τ.
        dropout_mask: see :func:`cross_attention_increments` and :func:`gap_mlp_increments`; ψ's
            own dropout does not count.
        padding: ``"published"`` takes the mean and the attention over all frames, padded ones
            included, and leaves those out of the pooling, behind its softmax.
    """
    if frame_mask is None:
        frame_mask = frame_features.new_ones(frame_features.shape[:2])
    frame_mask = frame_mask.to(torch.bool)
    seen = frame_mask
    frames = frame_features
    if padding == "published":
        seen = torch.ones_like(frame_mask)
    else:
        frames = torch.where(frame_mask.unsqueeze(-1), frame_features, 0.0)
    count = seen.sum(1, keepdim=True)
    gap = (frames.sum(1) / count).unsqueeze(0) - text_features.unsqueeze(1)
    delta = increments(gap, frames, psi, seen, dropout_mask)
    pool = torch.einsum("ad,bfd->abf", text_features, frames) / pool_temperature
    pool = pool.masked_fill(~seen, -torch.inf).softmax(-1) * frame_mask
    pooled = torch.einsum("abf,bfd->abd", pool, frames)
    corrected = F.normalize(text_features.unsqueeze(1) + delta, dim=-1)
    similarity = torch.einsum("abd,abd->ab", corrected, F.normalize(pooled, dim=-1))
    return Pairs(similarity, delta)


def video_corrected_pairs(
    text_features: Tensor,
    word_features: Tensor,
    word_mask: Tensor,
    frame_features: Tensor,
    frame_mask: Tensor,
    psi: CrossAttentionPsi | GapMLPPsi,
    *,
    dropout_mask: Tensor | float = 1.0,
) -> Pairs:
    """The paper's other variant, s_ij = cos(t_i, v̄_j + Δ_ij) with Δ_ij = ψ(v̄_j − t_i; words of i).

    Args:
        text_features: t, (A, D), not normalized.
        word_features: (A, W, D), not normalized.
        word_mask: (A, W) bool.
        frame_features: v, (B, F, D), not normalized.
        frame_mask: (B, F) bool.
        dropout_mask: as in :func:`pairs`, of a shape that broadcasts to (B, A, D or H).
    """
    frames = torch.where(frame_mask.unsqueeze(-1), frame_features, 0.0)
    words = torch.where(word_mask.unsqueeze(-1), word_features, 0.0)
    mean_frame = frames.sum(1) / frame_mask.sum(1, keepdim=True)
    gap = mean_frame.unsqueeze(1) - text_features
    delta = increments(gap, words, psi, word_mask, dropout_mask).transpose(0, 1)
    corrected = F.normalize(mean_frame + delta, dim=-1)
    similarity = torch.einsum("ad,abd->ab", F.normalize(text_features, dim=-1), corrected)
    return Pairs(similarity, delta)


def info_nce(similarity: Tensor, logit_scale: Tensor | float) -> Tensor:
    """Symmetric InfoNCE of a (B, B) similarity whose diagonal holds the matching pairs: 0-d."""
    logits = similarity * logit_scale
    diagonal = torch.arange(logits.shape[0], device=logits.device)
    return (F.cross_entropy(logits, diagonal) + F.cross_entropy(logits.T, diagonal)) / 2


def trust_region(increments: Tensor, trust_floor: float = 0.5) -> Tensor:
    """GARE's trust-region term: −mean_i Var_j ‖Δ_ij‖, 0-d; once below −trust_floor, just 0."""
    value = -increments.norm(dim=2).var(dim=1).mean()
    return value if value >= -trust_floor else value.new_zeros(())


def information_bottleneck(increments: Tensor, reduction: str = "sum") -> Tensor:
    """GARE's bottleneck: mean_j KL(N(μ_j, diag σ_j²) ‖ N(0, I)) of Δ over the texts, 0-d.

    The D features are summed, as in the published code, or averaged (``"mean"``), as in the paper.
    """
    mu, sigma = increments.mean(dim=0), increments.std(dim=0) + 1e-6
    prior = Normal(torch.zeros_like(mu), torch.ones_like(sigma))
    if reduction == "mean":
        return kl_divergence(Normal(mu, sigma), prior).mean()
    return kl_divergence(Independent(Normal(mu, sigma), 1), Independent(prior, 1)).mean()


def direction_diversity(increments: Tensor, alpha: float = 2.0) -> Tensor:
    """GARE's directional diversity: mean_i log mean_jk exp(−α(1 − cos(Δ_ij, Δ_ik))), 0-d.

    The published loop over texts. Indexing as it does, autograd adds up one (A, B, D) tensor of
    mostly zeros per text in the backward pass.
    """
    directions = F.normalize(increments, dim=2)
    total = increments.new_zeros(())
    for i in range(len(directions)):
        total = total + _log_mean_kernel(directions[i], alpha)
    return total / len(directions)


def direction_diversity_unbound(increments: Tensor, alpha: float = 2.0) -> Tensor:
    """The same loop without that cost: the texts are taken apart once."""
    directions = F.normalize(increments, dim=2)
    return torch.stack([_log_mean_kernel(unit, alpha) for unit in directions.unbind()]).mean()


def _log_mean_kernel(unit: Tensor, alpha: float) -> Tensor:
    return torch.log(torch.exp(-alpha * (1 - unit @ unit.T)).mean() + 1e-8)


def loss(
    text_features: Tensor,
    frame_features: Tensor,
    psi: CrossAttentionPsi | GapMLPPsi,
    logit_scale: Tensor | float,
    frame_mask: Tensor | None = None,
    *,
    pool_temperature: float = 3.0,
    alpha: float = 2.0,
    beta: float = 1e-4,
    lambda_direction: float = 0.01,
    lambda_trust: float = 0.01,
    trust_floor: float = 0.5,
    direction: Callable[[Tensor, float], Tensor] = direction_diversity,
    dropout_mask: Tensor | float = 1.0,
    padding: Padding = "ignored",
) -> Tensor:
    """GARE's whole training loss, 0-d: InfoNCE and the three weighted regularizers.

    Arguments as of :class:`garevla.GareLoss` and :func:`pairs`; ``direction`` is the form of the
    diversity term.
    """
    similarity, delta = pairs(
        text_features,
        frame_features,
        psi,
        frame_mask,
        pool_temperature=pool_temperature,
        dropout_mask=dropout_mask,
        padding=padding,
    )
    total = info_nce(similarity, logit_scale)
    total = total + beta * information_bottleneck(delta)
    total = total + lambda_trust * trust_region(delta, trust_floor)
    if lambda_direction:
        total = total + lambda_direction * direction(delta, alpha)
    return total
