"""The pair operation, eager: from per-text and per-video factors to scores and increments.

The readable definition that every compiled backend must agree with. Texts are the last axis
throughout, so that the per-pair arithmetic vectorises over them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from garevla.increments.low_rank.factors import TextFactors, VideoFactors
from garevla.ops.eager.chunks import CHUNK_ELEMENTS
from garevla.ops.products import linear
from garevla.utils.numerics import safe_sqrt


class PairTerms(NamedTuple):
    """What the pair operation knows of every pair, texts on the last axis."""

    similarity: Tensor  # (B, A) cos(t_i + Δ_ij, p_ij)
    coefficients: Tensor  # (B, K, A) c_ijk: Δ_ij = Σ_k c_ijk E_jk
    increment_norm: Tensor  # (B, A) ‖Δ_ij‖


def pair_terms(text: TextFactors, video: VideoFactors, pool_temperature: float) -> PairTerms:
    """Scores, coefficients and increment norms of all A × B pairs, O(A·B·K) in memory."""
    chunks = _map_video_chunks(_chunk_terms, text, video, pool_temperature)
    return PairTerms(*(torch.cat(parts) for parts in zip(*chunks, strict=True)))


def pair_similarity(text: TextFactors, video: VideoFactors, pool_temperature: float) -> Tensor:
    """Scores (B, A) alone: no more than a chunk of coefficients exists at a time."""

    def similarity_of_chunk(*args: Any) -> Tensor:
        return _chunk_terms(*args).similarity

    return torch.cat(_map_video_chunks(similarity_of_chunk, text, video, pool_temperature))


def _map_video_chunks(
    function: Callable[..., Any], text: TextFactors, video: VideoFactors, pool_temperature: float
) -> list[Any]:
    """Apply ``function`` to chunks of videos; with more than one, backward recomputes each."""
    per_video = text.features.shape[0] * video.rows.shape[1]
    step = max(1, CHUNK_ELEMENTS // per_video)
    if step >= len(video.rows):
        return [function(text, video, pool_temperature)]
    return [
        checkpoint(
            function,
            text,
            video.narrow(start, start + step),
            pool_temperature,
            use_reentrant=False,
            preserve_rng_state=False,
        )
        for start in range(0, len(video.rows), step)
    ]


def _chunk_terms(text: TextFactors, video: VideoFactors, pool_temperature: float) -> PairTerms:
    sizes = [video.key_bias[0].numel(), video.frame_mask.shape[1], video.basis_gram.shape[1]]
    key, frame, basis = linear(video.rows, text.features).split(sizes, dim=1)
    return terms_of_products(key, frame, basis, text, video, pool_temperature)


def terms_of_products(
    text_key: Tensor,
    text_frame: Tensor,
    text_basis: Tensor,
    text: TextFactors,
    video: VideoFactors,
    pool_temperature: float,
) -> PairTerms:
    """All pairs, from the dot products of the texts with the three parts of the videos' ``rows``,
    which are not looked at.

    Args:
        text_key: (B, H·F, A).
        text_frame: (B, F, A).
        text_basis: (B, K, A).
    """
    heads, frames = video.key_bias.shape[1:]
    r1 = (_gap_variance(text, video) + video.layer_norm_eps[0]).rsqrt()

    # The gap's attention over the frames, per head.
    padding = ~video.frame_mask
    text_key = text_key.unflatten(1, (heads, frames))
    bias = video.key_bias.masked_fill(padding.unsqueeze(1), -torch.inf).unsqueeze(-1)
    gap_key = video.key_offset.unsqueeze(-1) - text_key
    attention = torch.addcmul(bias, gap_key, r1[:, None, None]).softmax(dim=2).flatten(1, 2)

    # Through LN2 and LN3, whose variances are quadratic forms.
    r2 = (_quadratic_form(video.value_gram, attention) + video.layer_norm_eps[1]).rsqrt()
    ones = torch.ones_like(r2).unsqueeze(1)
    hidden = torch.cat([attention * r2.unsqueeze(1), ones], dim=1)
    r3 = (_quadratic_form(video.hidden_gram, hidden) + video.layer_norm_eps[2]).rsqrt()
    coefficients = torch.cat([hidden * r3.unsqueeze(1), ones], dim=1)
    squared_increment = _quadratic_form(video.basis_gram, coefficients)

    # The text-conditioned video, pooled by the uncorrected text.
    shut = torch.zeros_like(bias[:, 0]).masked_fill(padding.unsqueeze(-1), -torch.inf)
    pool = torch.add(shut, text_frame, alpha=1 / pool_temperature).softmax(dim=1)

    dot = (pool * text_frame).sum(dim=1) + (coefficients * (video.basis_frame @ pool)).sum(dim=1)
    squared_text = text.squared_norm + 2 * (coefficients * text_basis).sum(dim=1)
    squared_text = squared_text + squared_increment
    squared_video = _quadratic_form(video.frame_gram, pool)
    # With a zero vector the cosine is 0, and has no gradient.
    tiny = torch.finfo(dot.dtype).tiny
    zero = (squared_text < tiny) | (squared_video < tiny)
    norms = squared_text.masked_fill(zero, 1).sqrt() * squared_video.masked_fill(zero, 1).sqrt()
    similarity = dot / norms * ~zero
    return PairTerms(similarity, coefficients, safe_sqrt(squared_increment))


def _quadratic_form(gram: Tensor, x: Tensor) -> Tensor:
    """xᵀ G x for each column: gram (B, N, N), x (B, N, A) → (B, A)."""
    return (x * (gram @ x)).sum(dim=1)


def _gap_variance(text: TextFactors, video: VideoFactors) -> Tensor:
    """Variance over D of the gap v̄_j − t_i, as (B, A).

    The three terms cancel where the gap is small beside the features. Doubling the precision of
    this one product keeps float32 as exact as forming every gap would.
    """
    wide = torch.float32 if text.features.device.type == "mps" else torch.float64
    centered_text, centered_video = text.centered.to(wide), video.mean_frame.to(wide)
    cross = centered_video @ centered_text.T
    squares = centered_video.square().sum(-1).unsqueeze(1) + centered_text.square().sum(-1)
    variance = (squares - 2 * cross).clamp_min(0) / centered_text.shape[1]
    return variance.to(text.features.dtype)
