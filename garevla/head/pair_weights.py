"""Weighted sums of the similarities of all pairs, a few rows at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from garevla.increments.base import EncodedVideos
from garevla.utils.slices import slices_of

# Pairs whose similarities exist at once.
_AT_ONCE = 2**19


@dataclass(frozen=True)
class PairWeights:
    """W (A, B): W_ij of listed pairs, and the same for all others of a column."""

    shape: tuple[int, int]
    rows: Tensor  # (P) int64
    columns: Tensor  # (P) int64
    values: Tensor  # (P), added up where a pair is listed twice

    @property
    def T(self) -> PairWeights:
        """Rows and columns exchanged."""
        return replace(self, shape=self.shape[::-1], rows=self.columns, columns=self.rows)

    def of_rows(self, rows: slice) -> Tensor:
        """W (a, B) of a few rows."""
        here = (self.rows >= rows.start) & (self.rows < rows.stop)
        found = self.values.new_zeros(rows.stop - rows.start, self.shape[1])
        # Not indexed by the mask: the host would wait for a GPU.
        row = (self.rows - rows.start).clamp(0, len(found) - 1)
        return found.index_put((row, self.columns), self.values * here, accumulate=True)

    def weigh(self, similarity: Tensor) -> Tensor:
        """Σ_ij W_ij s_ij of similarities (A, B), 0-d."""
        return _Weighted.apply(similarity, lambda: self.of_rows(slice(0, self.shape[0])))

    def weigh_pairs(
        self,
        text: Tensor,
        videos: EncodedVideos,
        pool_temperature: float,
        backend: str,
        first_video: int = 0,
    ) -> Tensor:
        """Σ_ij W_ij s_ij with nothing of A·B elements, by scoring all pairs once more, 0-d.

        Args:
            text, videos, pool_temperature, backend: as in :meth:`EncodedVideos.similarity`.
            first_video: index that the first video has in the whole batch.
        """
        total = text.new_zeros(())
        for rows in slices_of(len(text), max(1, _AT_ONCE // self.shape[1])):
            placed = videos.placed(rows.start, first_video, videos.dropout_seed)
            similarity = placed.similarity(text[rows], pool_temperature, backend)
            total = total + _Weighted.apply(similarity, lambda rows=rows: self.of_rows(rows))
        return total


class _Weighted(torch.autograd.Function):
    """Σ W s, for which W is made again in the backward pass."""

    @staticmethod
    def forward(ctx: Any, similarity: Tensor, weights: Callable[[], Tensor]) -> Tensor:
        ctx.weights = weights
        return (weights() * similarity).sum()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad * ctx.weights(), None
