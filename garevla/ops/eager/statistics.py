"""What the loss needs of all pairs, without the pairs: the streaming loss's statistics."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from garevla.increments.base import score_statistics
from garevla.increments.low_rank.factors import TextFactors, VideoFactors
from garevla.ops.eager.pairs import pair_terms

# A coefficient of a video of one frame passes through about this many roundings.
_ROUNDINGS = 16


class CoefficientStatistics(NamedTuple):
    """Statistics of all A × B pairs with low-rank increments.

    O(A + B·K²) numbers; with samples, which ``direction`` can be estimated from, A·n·K more.
    """

    row_logsumexp: Tensor  # (A) log Σ_j exp(logit_scale · s_ij)
    column_logsumexp: Tensor  # (B) log Σ_i exp(logit_scale · s_ij)
    target_similarity: Tensor  # (A) similarity of each text with its video
    norm_mean: Tensor  # (A) mean of ‖Δ_ij‖ over the videos
    norm_variance: Tensor  # (A) unbiased variance of ‖Δ_ij‖ over the videos
    coefficient_mean: Tensor  # (B, K) mean of c_ijk over the texts
    coefficient_covariance: Tensor  # (B, K, K) unbiased covariance of c_ijk over the texts
    sampled_coefficients: Tensor | None  # (A, n, K) coefficients of sampled pairs


def pair_statistics(
    text: TextFactors,
    video: VideoFactors,
    pool_temperature: float,
    logit_scale: Tensor,
    targets: Tensor,
    samples: Tensor | None = None,
) -> CoefficientStatistics:
    """The statistics by way of all pairs, O(A·B·K) in memory: what streaming backends must equal.

    Args:
        text, video: factors of A texts and B videos.
        pool_temperature: τ_p of the pooling.
        logit_scale: 0-d.
        targets: (A,) int64, the video of each text.
        samples: (A, n) int64, videos whose coefficients are wanted for each text.
    """
    terms = pair_terms(text, video, pool_temperature)
    sampled = None
    if samples is not None:
        texts = torch.arange(len(samples), device=samples.device).unsqueeze(1)
        sampled = terms.coefficients[samples, :, texts]
    similarity, norm = terms.similarity.T, terms.increment_norm.T
    return CoefficientStatistics(
        **score_statistics(similarity, norm, logit_scale, targets),
        **coefficient_moments(terms.coefficients),
        sampled_coefficients=sampled,
    )


def coefficient_moments(coefficients: Tensor) -> dict[str, Tensor]:
    """Mean (B, K) and unbiased covariance (B, K, K) over the texts of coefficients (B, K, A)."""
    # Where all texts agree (a video of one frame), the covariance must come out as 0 and not as the
    # square of a rounding error, whose logarithm counts and whose root has a huge gradient.
    relative = coefficients - coefficients[:, :, :1]
    rounding = _ROUNDINGS * torch.finfo(coefficients.dtype).eps * coefficients[:, :, :1].abs()
    agree = (relative.detach().abs() <= rounding.detach()).all(dim=2, keepdim=True)
    relative = relative.masked_fill(agree, 0.0)
    relative_mean = relative.mean(dim=2, keepdim=True)
    centered = relative - relative_mean
    mean = coefficients[:, :, :1] + relative_mean
    covariance = centered @ centered.mT / max(coefficients.shape[2] - 1, 1)
    return {"coefficient_mean": mean.squeeze(2), "coefficient_covariance": covariance}
