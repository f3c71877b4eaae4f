"""The few numbers of a pair beside its hidden vector, and their adjoint: (b, …, a) tensors.

b videos, a texts, texts last. What is here costs a few per cent of the hidden layer.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from garevla.ops.products import linear
from garevla.utils.numerics import safe_sqrt

Gradients = dict[str, Tensor]
"""What is to be added to the gradients of a tile's factors, by name."""


def wide_dtype(like: Tensor) -> torch.dtype:
    """That of the product whose terms cancel where gaps are small (ops/eager/pairs.py)."""
    return torch.float32 if like.device.type == "mps" else torch.float64


def inverse_deviation(text: Tensor, video: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """1 / √(var(v̄_j − t_i) + eps), (b, a), of text (a, D) and video (b, D), centered and wide."""
    squares = video.square().sum(-1).unsqueeze(1) + text.square().sum(-1)
    variance = torch.addmm(squares, video, text.T, alpha=-2).clamp_min_(0) / text.shape[1]
    return variance.to(dtype).add_(eps).rsqrt_()


def inverse_deviation_adjoint(
    grad: Tensor, inverse: Tensor, text: Tensor, video: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients (a, D) and (b, D) of the centered text and video, from that (b, a) of the inverse
    deviation."""
    grad_variance = (grad * inverse.pow(3)).to(text.dtype).mul_(-1 / text.shape[1])
    grad_text = grad_variance.sum(0).unsqueeze(1) * text - grad_variance.T @ video
    grad_video = grad_variance.sum(1).unsqueeze(1) * video - grad_variance @ text
    return grad_text, grad_video


class Attention(NamedTuple):
    """The gap's attention over its video's frames, by head."""

    probability: Tensor  # (b, K, a)
    smoothed: Tensor  # (b, K, a) value_gram · probability
    inverse: Tensor  # (b, a) inverse standard deviation of what it attends to
    weights: Tensor  # (b, K, a) probability · inverse
    gap_key: Tensor  # (b, K, a) products of gap and keys


def attention(
    text: Tensor, factors: dict[str, Tensor], inverse_gap: Tensor, eps: float
) -> Attention:
    """Attention weights of a tile's pairs: text (a, D), inverse_gap (b, a)."""
    key_bias, padding = factors["key_bias"], ~factors["frame_mask"]
    gap_key = factors["key_offset"].flatten(1).unsqueeze(2) - linear(factors["keys"], text)
    bias = key_bias.masked_fill(padding.unsqueeze(1), -torch.inf).flatten(1).unsqueeze(2)
    logits = torch.addcmul(bias, gap_key, inverse_gap.unsqueeze(1))
    probability = logits.unflatten(1, key_bias.shape[1:]).softmax(dim=2).flatten(1, 2)
    smoothed = factors["value_gram"] @ probability
    inverse = ((probability * smoothed).sum(dim=1) + eps).rsqrt_()
    weights = probability * inverse.unsqueeze(1)
    return Attention(probability, smoothed, inverse, weights, gap_key)


def attention_adjoint(
    grad_weights: Tensor,
    found: Attention,
    text: Tensor,
    factors: dict[str, Tensor],
    inverse_gap: Tensor,
) -> tuple[Tensor, Tensor, Gradients]:
    """Gradients of text (a, D), of inverse_gap (b, a) and of the factors."""
    key_bias = factors["key_bias"]
    grad_inverse = (grad_weights * found.probability).sum(dim=1)
    # Half of the quadratic form's gradient, which it hands on twice.
    half = (-0.5 * grad_inverse * found.inverse.pow(3)).unsqueeze(1)
    grad = grad_weights * found.inverse.unsqueeze(1) + 2 * half * found.smoothed
    by_head = (grad * found.probability).unflatten(1, key_bias.shape[1:])
    share = found.probability.unflatten(1, key_bias.shape[1:]) * by_head.sum(dim=2, keepdim=True)
    grad_logits = (by_head - share).flatten(1, 2)
    grad_gap_key = grad_logits * inverse_gap.unsqueeze(1)
    gradients = {
        "value_gram": (half * found.probability) @ found.probability.mT,
        "key_bias": grad_logits.sum(dim=2).view_as(key_bias),
        "key_offset": grad_gap_key.sum(dim=2).view_as(key_bias),
        "keys": linear(-grad_gap_key, text.T),
    }
    grad_text = linear(-grad_gap_key.flatten(0, 1).T, factors["keys"].flatten(0, 1).T)
    return grad_text, (grad_logits * found.gap_key).sum(dim=1), gradients


class Products(NamedTuple):
    """Of the increments of a tile, all that the scores need."""

    text: Tensor  # (b, a) t_i·Δ_ij
    norm: Tensor  # (b, a) ‖Δ_ij‖²
    frame: Tensor  # (b, F, a) v_jf·Δ_ij


class Scores(NamedTuple):
    """Scores of a tile's pairs, and what their adjoint needs."""

    similarity: Tensor  # (b, a)
    norm: Tensor  # (b, a) ‖Δ_ij‖
    pool: Tensor  # (b, F, a) weights of the frames
    smoothed: Tensor  # (b, F, a) frame_gram · pool
    corrected: Tensor  # (b, F, a) v_jf·(t_i + Δ_ij)
    squared_text: Tensor  # (b, a) ‖t_i + Δ_ij‖²; inf where that is 0
    squared_video: Tensor  # (b, a) ‖p_ij‖², likewise


def scores(
    text: Tensor,
    squared_norm: Tensor,
    factors: dict[str, Tensor],
    products: Products,
    pool_temperature: float,
) -> Scores:
    """cos(t_i + Δ_ij, p_ij) and ‖Δ_ij‖: text (a, D), squared_norm (a) of the texts."""
    frames, padding = factors["frames"], ~factors["frame_mask"]
    text_frame = linear(frames, text)
    logits = (text_frame / pool_temperature).masked_fill_(padding.unsqueeze(2), -torch.inf)
    pool = logits.softmax(dim=1)
    smoothed = factors["frame_gram"] @ pool
    corrected = text_frame + products.frame
    squared_text = _nonzero(squared_norm + 2 * products.text + products.norm)
    squared_video = _nonzero((pool * smoothed).sum(dim=1))
    dot = (pool * corrected).sum(dim=1)
    similarity = dot / (squared_text.sqrt() * squared_video.sqrt())
    norm = safe_sqrt(products.norm)
    return Scores(similarity, norm, pool, smoothed, corrected, squared_text, squared_video)


def _nonzero(squares: Tensor) -> Tensor:
    """Make zeros infinite, in place: a cosine with a zero vector is 0, and has no gradient."""
    return squares.masked_fill_(squares < torch.finfo(squares.dtype).tiny, torch.inf)


def scores_adjoint(
    grad_similarity: Tensor,
    grad_norm: Tensor,
    found: Scores,
    text: Tensor,
    factors: dict[str, Tensor],
    pool_temperature: float,
) -> tuple[Products, Tensor, Tensor, Gradients]:
    """Gradients of the products, of text (a, D), of its squared norm (a) and of the factors."""
    frames = factors["frames"]
    inverse = 1 / (found.squared_text.sqrt() * found.squared_video.sqrt())
    grad_dot = (grad_similarity * inverse).unsqueeze(1)
    half = -0.5 * grad_similarity * found.similarity
    grad_squared_text = half / found.squared_text
    half_video = (half / found.squared_video).unsqueeze(1)
    grad_frame = grad_dot * found.pool
    grad_pool = grad_dot * found.corrected + 2 * half_video * found.smoothed
    weighted = grad_pool * found.pool
    grad_logits = weighted - found.pool * weighted.sum(dim=1, keepdim=True)
    grad_text_frame = torch.add(grad_frame, grad_logits, alpha=1 / pool_temperature)
    gradients = {
        "frame_gram": (half_video * found.pool) @ found.pool.mT,
        "frames": linear(grad_text_frame, text.T),
    }
    grad_text = linear(grad_text_frame.flatten(0, 1).T, frames.flatten(0, 1).T)
    shut = found.norm <= 0
    grad_squared = torch.where(shut, 0.0, 0.5 * grad_norm / torch.where(shut, 1.0, found.norm))
    products = Products(2 * grad_squared_text, grad_squared_text + grad_squared, grad_frame)
    return products, grad_text, grad_squared_text.sum(dim=0), gradients
