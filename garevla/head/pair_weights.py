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
class ListedPairs:
    """T (A, B), 0 but for P listed pairs."""

    shape: tuple[int, int]
    rows: Tensor  # (P) int64
    columns: Tensor  # (P) int64
    values: Tensor  # (P), added up where a pair is listed twice

    @property
    def T(self) -> ListedPairs:
        return ListedPairs(self.shape[::-1], self.columns, self.rows, self.values)

    def sum(self, dim: int) -> Tensor:
        """Over the columns (dim 1) or the rows (dim 0)."""
        index = self.rows if dim == 1 else self.columns
        return self.values.new_zeros(self.shape[1 - dim]).index_add(0, index, self.values)

    def __getitem__(self, rows: slice) -> Tensor:
        here = (self.rows >= rows.start) & (self.rows < rows.stop)
        found = self.values.new_zeros(rows.stop - rows.start, self.shape[1])
        # Not indexed by the mask: the host would wait for a GPU.
        row = (self.rows - rows.start).clamp(0, len(found) - 1)
        return found.index_put((row, self.columns), self.values * here, accumulate=True)


@dataclass(frozen=True)
class PairWeights:
    """W_ij = T_ij (of_row_i + of_column_j) + every_row_i + every_column_j, never whole."""

    right: ListedPairs | Tensor | None  # T (A, B); None: 0
    of_row: Tensor  # (A)
    of_column: Tensor  # (B)
    every_row: Tensor  # (A)
    every_column: Tensor  # (B)

    @property
    def T(self) -> PairWeights:
        """Rows and columns exchanged."""
        right = None if self.right is None else self.right.T
        return PairWeights(right, self.of_column, self.of_row, self.every_column, self.every_row)

    def columns(self, columns: slice) -> PairWeights:
        """Of a few columns, where no pair stands out."""
        assert self.right is None
        of_column, every = self.of_column[columns], self.every_column[columns]
        return replace(self, of_column=of_column, every_column=every)

    def of_rows(self, rows: slice) -> Tensor:
        """W (a, B) of a few rows."""
        every = self.every_row[rows].unsqueeze(1) + self.every_column
        if self.right is None:
            return every
        return every + self.right[rows] * (self.of_row[rows].unsqueeze(1) + self.of_column)

    def weigh(self, similarity: Tensor) -> Tensor:
        """Σ_ij W_ij s_ij of similarities (A, B), 0-d."""
        return _Weighted.apply(similarity, lambda: self.of_rows(slice(0, len(similarity))))

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
        for rows in slices_of(len(text), max(1, _AT_ONCE // len(self.every_column))):
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
