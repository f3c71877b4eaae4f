"""The adjoint of a tile's arithmetic, in four parts: what one has done with leaves its registers
before the next begins."""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from garevla.kernels.pairs.gram import Matrices, form
from garevla.kernels.pairs.tile import columns_of, head_sums, inner, spread, terms
from garevla.kernels.rounding import rounded_product


class CosineAdjoint(NamedTuple):
    """Gradients (BLOCK_A, VIDEOS) of the cosine's parts. They are also the weights w of the Gram
    matrices' gradients Σ_i w_i x_i x_iᵀ."""

    score: Any  # of the numerator; weight of basis_frame
    text: Any  # of ‖t + Δ‖², and so of ‖t‖²
    video: Any  # of ‖p‖²; weight of frame_gram
    increment: Any  # of ‖Δ‖²; weight of basis_gram


class Adjoint(NamedTuple):
    """Gradients of a tile's increments."""

    attention_logits: Any  # (BLOCK_A, VIDEOS·K_PAD); of the keys' products: times −r1
    gap_variance: Any  # (BLOCK_A, VIDEOS)
    value_weight: Any  # (BLOCK_A, VIDEOS) of value_gram, as in CosineAdjoint
    hidden_weight: Any  # (BLOCK_A, VIDEOS) of hidden_gram


@triton.jit
def softmax_adjoint(
    probabilities,  # (BLOCK_A, VIDEOS·PAD)
    gradient,  # (BLOCK_A, VIDEOS·PAD) of the probabilities
    head,  # (VIDEOS·PAD)
    PAD: tl.constexpr,
    HEADS: tl.constexpr,
    TILE,
):
    """Gradient of the logits, rounded: the kernel sums it over texts, too."""
    sums = head_sums(terms(probabilities, gradient, TILE), head, PAD, HEADS, TILE)
    return rounded_product(probabilities, gradient - sums)


@triton.jit
def cosine_adjoint(
    grad_similarity,  # (BLOCK_A, VIDEOS)
    grad_norm,  # (BLOCK_A, VIDEOS) gradient of ‖Δ‖
    pairs,  # Pairs
    TILE,
):
    """The adjoint of pair_forward, first part: the cosine."""
    half = -0.5 * grad_similarity * pairs.similarity
    inverse_text, inverse_video = pairs.inverse_text, pairs.inverse_video
    text = half * inverse_text * inverse_text
    video = half * inverse_video * inverse_video
    # A zero increment's norm has no gradient.
    still = pairs.increment_norm == 0
    of_norm = 0.5 * grad_norm / tl.where(still, 1.0, pairs.increment_norm)
    increment = text + tl.where(still, 0.0, of_norm)
    return CosineAdjoint(grad_similarity * inverse_text * inverse_video, text, video, increment)


@triton.jit
def coefficients_adjoint(
    cosine,  # CosineAdjoint
    text_basis,  # (BLOCK_A, VIDEOS·K_PAD)
    pairs,  # Pairs
    TILE,
):
    """Second part: the cosine's gradient of the coefficients, (BLOCK_A, VIDEOS·K_PAD)."""
    gradient = spread(cosine.score, TILE.K_PAD, TILE) * pairs.basis_pool
    gradient += spread(2 * cosine.text, TILE.K_PAD, TILE) * text_basis
    gradient += spread(2 * cosine.increment, TILE.K_PAD, TILE) * pairs.basis_form
    return gradient


@triton.jit
def pool_adjoint(
    cosine,  # CosineAdjoint
    text_frame,  # (BLOCK_A, VIDEOS·F_PAD)
    pairs,  # Pairs
    video,
    num_videos,
    TILE,
):
    """Third part: the pooling. Gradient of the products with frames, (BLOCK_A, VIDEOS·F_PAD)."""
    F: tl.constexpr = TILE.FRAMES
    F_PAD: tl.constexpr = TILE.F_PAD
    BASIS: tl.constexpr = TILE.HEADS * F + 2
    _, f, _ = columns_of(num_videos, F_PAD, TILE)
    increment_frame = form(
        pairs.coefficients,
        Matrices(video.basis_frame, 1, BASIS, F, TILE.K_PAD, F_PAD, False),
        num_videos,
        TILE,
    )
    score = spread(cosine.score, F_PAD, TILE)
    grad_pool = score * (text_frame + increment_frame)
    grad_pool += spread(2 * cosine.video, F_PAD, TILE) * pairs.frame_form
    grad_logits = softmax_adjoint(pairs.pool, grad_pool, f // F_PAD, F_PAD, 1, TILE)
    return score * pairs.pool + grad_logits * (1.0 / TILE.TEMPERATURE)


@triton.jit
def increment_adjoint(
    grad_coefficients,  # (BLOCK_A, VIDEOS·K_PAD) from the cosine and from outside
    pairs,  # Pairs
    num_videos,
    TILE,
):
    """Fourth part: the increment, down to the products with keys."""
    K_PAD: tl.constexpr = TILE.K_PAD
    _, k, _ = columns_of(num_videos, K_PAD, TILE)
    # LN3: coefficients = (hidden · r3, 1), and LN2: hidden = (attention · r2, 1).
    r1, r2, r3 = pairs.r1, pairs.r2, pairs.r3
    hidden_weight = -0.5 * inner(grad_coefficients, pairs.hidden, TILE) * r3 * r3 * r3
    grad_hidden = grad_coefficients * spread(r3, K_PAD, TILE)
    grad_hidden += spread(2 * hidden_weight, K_PAD, TILE) * pairs.hidden_form
    value_weight = -0.5 * inner(grad_hidden, pairs.attention, TILE) * r2 * r2 * r2
    grad_logits = grad_hidden * spread(r2, K_PAD, TILE)
    grad_logits += spread(2 * value_weight, K_PAD, TILE) * pairs.attention_form
    head = k // TILE.FRAMES
    grad_logits = softmax_adjoint(pairs.attention, grad_logits, head, K_PAD, TILE.HEADS, TILE)
    gap_variance = -0.5 * inner(grad_logits, pairs.gap_key, TILE) * r1 * r1 * r1
    return Adjoint(grad_logits, gap_variance, value_weight, hidden_weight)
