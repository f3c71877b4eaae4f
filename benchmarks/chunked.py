"""The published formulas over a few texts at a time, each chunk recomputed in the backward pass.

What one does first about memory: the same arithmetic, a chunk's (a, B, D) tensors at most.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from benchmarks.cases import Network
from garevla.reference import gare as reference

# Of one (a, B, D) tensor; a few dozen of them exist at a time.
CHUNK_ELEMENTS = 2**22


def vectorized_direction(increments: Tensor, alpha: float = 2.0) -> Tensor:
    """The published directional diversity with all texts in one batched product."""
    return _log_mean_kernel(increments, alpha).mean()


def chunked_similarity(
    text: Tensor,
    video: Tensor,
    psi: Network,
    mask: Tensor,
    *,
    dropout_mask: Tensor | float = 1.0,
) -> Tensor:
    """(A, B) similarity."""

    def similarity_of(texts: Tensor, dropped: Tensor | float) -> Tensor:
        return reference.pairs(texts, video, psi, mask, dropout_mask=dropped).similarity

    chunks = _chunks(text, video)
    parts = [
        checkpoint(similarity_of, *chunk, use_reentrant=False)
        for chunk in zip(chunks, _masks_of(chunks, dropout_mask), strict=True)
    ]
    return torch.cat(parts)


def chunked_loss(
    text: Tensor,
    video: Tensor,
    psi: Network,
    logit_scale: Tensor | float,
    mask: Tensor,
    *,
    alpha: float = 2.0,
    beta: float = 1e-4,
    lambda_direction: float = 0.01,
    lambda_trust: float = 0.01,
    trust_floor: float = 0.5,
    dropout_mask: Tensor | float = 1.0,
) -> Tensor:
    """The whole published loss; the moments over the texts are joined from the chunks'."""

    def terms_of(texts: Tensor, dropped: Tensor | float) -> tuple[Tensor, ...]:
        similarity, increments = reference.pairs(texts, video, psi, mask, dropout_mask=dropped)
        mean = increments.mean(dim=0)
        squares = (increments - mean).square().sum(dim=0)
        variance = increments.norm(dim=2).var(dim=1)
        direction = _log_mean_kernel(increments, alpha) if lambda_direction else variance
        return similarity, mean, squares, variance, direction

    chunks = _chunks(text, video)
    parts = [
        checkpoint(terms_of, *chunk, use_reentrant=False)
        for chunk in zip(chunks, _masks_of(chunks, dropout_mask), strict=True)
    ]
    similarity, mean, squares, variance, direction = zip(*parts, strict=True)
    counts = [len(texts) for texts in chunks]
    mu, sigma = _joined_moments(counts, mean, squares)
    kl = (mu.square() + sigma.square() - 1) / 2 - sigma.log()
    trust = -torch.cat(variance).mean()
    loss = reference.info_nce(torch.cat(similarity), logit_scale) + beta * kl.sum(dim=1).mean()
    loss = loss + lambda_trust * torch.where(trust >= -trust_floor, trust, 0.0)
    if lambda_direction:
        loss = loss + lambda_direction * torch.cat(direction).mean()
    return loss


def _chunks(text: Tensor, video: Tensor) -> tuple[Tensor, ...]:
    return text.split(max(1, CHUNK_ELEMENTS // (len(video) * text.shape[1])))


def _masks_of(chunks: tuple[Tensor, ...], dropout_mask: Tensor | float) -> Sequence[Tensor | float]:
    if isinstance(dropout_mask, Tensor):
        return dropout_mask.split([len(texts) for texts in chunks])
    return [dropout_mask] * len(chunks)


def _joined_moments(
    counts: list[int], means: tuple[Tensor, ...], squares: tuple[Tensor, ...]
) -> tuple[Tensor, Tensor]:
    """Mean and unbiased standard deviation + 1e-6 of all texts from those of chunks."""
    total = sum(counts)
    mu = sum(count * mean for count, mean in zip(counts, means, strict=True)) / total
    spread = sum(
        square + count * (mean - mu).square()
        for count, mean, square in zip(counts, means, squares, strict=True)
    )
    return mu, (spread / (total - 1)).sqrt() + 1e-6


def _log_mean_kernel(increments: Tensor, alpha: float) -> Tensor:
    units = F.normalize(increments, dim=2)
    kernel = torch.exp(-alpha * (1 - units @ units.mT))
    return torch.log(kernel.mean(dim=(1, 2)) + 1e-8)
