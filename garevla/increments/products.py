"""Dot products and sums of all increments of a batch, for analysis."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor


class IncrementProducts(ABC):
    """What can be asked of the increments Δ_ij of A texts and B videos without seeing them."""

    @abstractmethod
    def with_texts(self, vectors: Tensor) -> Tensor:
        """Δ_ij·u_i (A, B) with a vector u of each text, (A, D)."""

    @abstractmethod
    def with_videos(self, vectors: Tensor) -> Tensor:
        """Δ_ij·u_jv (A, B, V) with V vectors u of each video, (B, V, D)."""

    @abstractmethod
    def sums(self, weights: Tensor) -> Tensor:
        """Σ_j w_ij Δ_ij (A, D), weights w (A, B)."""


@dataclass(frozen=True)
class DenseProducts(IncrementProducts):
    """Of increments that are there."""

    increments: Tensor  # (A, B, D)

    def with_texts(self, vectors: Tensor) -> Tensor:
        return torch.einsum("abd,ad->ab", self.increments, vectors)

    def with_videos(self, vectors: Tensor) -> Tensor:
        return torch.einsum("abd,bvd->abv", self.increments, vectors)

    def sums(self, weights: Tensor) -> Tensor:
        return torch.einsum("ab,abd->ad", weights, self.increments)


@dataclass(frozen=True)
class LowRankProducts(IncrementProducts):
    """Of Δ_ij = Σ_k c_ijk E_jk."""

    coefficients: Tensor  # (B, K, A) c_ijk
    basis: Tensor  # (B, K, D) the vectors E_jk

    def with_texts(self, vectors: Tensor) -> Tensor:
        return (self.coefficients * (self.basis @ vectors.T)).sum(dim=1).T

    def with_videos(self, vectors: Tensor) -> Tensor:
        products = self.basis @ vectors.mT  # (B, K, V)
        return (self.coefficients.mT @ products).transpose(0, 1)

    def sums(self, weights: Tensor) -> Tensor:
        weighted = self.coefficients * weights.T.unsqueeze(1)
        return weighted.flatten(0, 1).T @ self.basis.flatten(0, 1)
