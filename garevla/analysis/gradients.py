"""InfoNCE's gradient with respect to every pair's increment, and what all of a row's come to.

With x_ij = a_i + Δ_ij and s_ij = cos(x_ij, o_ij), the gradient with respect to Δ_ij is

    ∂L/∂Δ_ij = w_ij (ô_ij − s_ij x̂_ij) / ‖x_ij‖,        w_ij = ∂L/∂s_ij

since o_ij is pooled by the uncorrected anchor. It is also what pair (i, j) contributes to the
gradient of the anchor itself, others and increments held fixed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from garevla.analysis.sides import PairRows
from garevla.head.pair_weights import PairWeights


@dataclass(frozen=True)
class InfoNCE:
    """Symmetric InfoNCE of M anchors and N others, as a function of a few anchors' rows at a time.

    InfoNCE = ½ (Σ_i a_i R_i + Σ_j b_j C_j − Σ_ij W_ij scale·s_ij), R and C the logsumexps of rows
    and columns.
    """

    weights: PairWeights  # W
    anchor_share: Tensor  # (M) a_i
    other_share: Tensor  # (N) b_j
    logit_scale: float


class StreamedInfoNCE:
    """The loss of similarities that come a few rows at a time."""

    def __init__(self, info_nce: InfoNCE) -> None:
        self.info_nce = info_nce
        share = info_nce.other_share
        self.column_logsumexp = torch.full_like(share, -torch.inf)
        self._of_rows = share.new_zeros(())

    def add(self, rows: slice, similarity: Tensor) -> None:
        """Rows (m, N) of the similarity; each once."""
        info_nce = self.info_nce
        logits = similarity * info_nce.logit_scale
        self.column_logsumexp = torch.logaddexp(self.column_logsumexp, logits.logsumexp(dim=0))
        per_row = info_nce.anchor_share[rows] * logits.logsumexp(dim=1)
        self._of_rows += per_row.sum() - (info_nce.weights.of_rows(rows) * logits).sum()

    @property
    def value(self) -> Tensor:
        """0-d, once all rows were there."""
        return 0.5 * (self._of_rows + (self.info_nce.other_share * self.column_logsumexp).sum())


@dataclass(frozen=True)
class RowGradients:
    """∂L/∂Δ_ij of all pairs of m anchors, (m, N) numbers each."""

    similarity: Tensor  # s_ij
    corrected_norm: Tensor  # ‖x_ij‖
    weight: Tensor  # w_ij
    probability_difference: Tensor  # η_ij − α_ij

    @property
    def sine(self) -> Tensor:
        """√(1 − s²), of the angle between x_ij and o_ij."""
        return (1 - self.similarity.square()).clamp_min(0).sqrt()

    @property
    def norm(self) -> Tensor:
        """‖∂L/∂Δ_ij‖."""
        return self.weight.abs() * self.sine / positive(self.corrected_norm)

    def descent_cosine(self, increment: PairIncrement) -> Tensor:
        """cos(Δ_ij, −∂L/∂Δ_ij), 0 where one of both is 0."""
        along = increment.with_other - self.similarity * increment.with_corrected
        return -self.weight.sign() * ratio(along, increment.norm * self.sine)


@dataclass(frozen=True)
class PairIncrement:
    """Dot products of Δ_ij with unit vectors, (m, N)."""

    norm: Tensor
    with_other: Tensor  # Δ_ij·ô_ij
    with_corrected: Tensor  # Δ_ij·x̂_ij


@dataclass(frozen=True)
class State:
    """Pairs with their increments, or as if these were 0."""

    pairs: PairRows
    corrected: bool

    @property
    def norm(self) -> Tensor:
        """(m, N) ‖x_ij‖."""
        if self.corrected:
            return self.pairs.corrected_norm
        return self.pairs.anchor_norm.expand_as(self.pairs.other_norm)

    @property
    def similarity(self) -> Tensor:
        """(m, N) s_ij."""
        dot = self.pairs.anchor_other
        if self.corrected:
            dot = dot + self.pairs.increment_other
        return ratio(dot, self.norm * self.pairs.other_norm).clamp(-1, 1)

    @property
    def increment(self) -> PairIncrement:
        """The network's increments, as seen from here."""
        pairs = self.pairs
        along = pairs.increment_anchor
        if self.corrected:
            along = along + pairs.increment_norm.square()
        return PairIncrement(
            pairs.increment_norm,
            ratio(pairs.increment_other, pairs.other_norm),
            ratio(along, self.norm),
        )

    def gradients(self, info_nce: InfoNCE, rows: slice, column_logsumexp: Tensor) -> RowGradients:
        """Of the loss of all pairs, whose columns' logsumexps (N) are known."""
        similarity = self.similarity
        logits = similarity * info_nce.logit_scale
        of_anchor, of_other = logits.softmax(dim=1), (logits - column_logsumexp).exp()
        weight = info_nce.anchor_share[rows].unsqueeze(1) * of_anchor
        weight = weight + info_nce.other_share * of_other - info_nce.weights.of_rows(rows)
        return RowGradients(
            similarity, self.norm, 0.5 * info_nce.logit_scale * weight, of_anchor - of_other
        )

    def combined(self, gradients: RowGradients, weights: Tensor) -> Tensor:
        """Σ_j u_ij (ô_ij − s_ij x̂_ij) (m, D), weights u (m, N)."""
        pairs = self.pairs
        others = pairs.sum_of_others(ratio(weights, pairs.other_norm))
        back = ratio(weights * gradients.similarity, self.norm)
        if self.corrected:
            return others - pairs.sum_of_corrected(back)
        return others - back.sum(dim=1, keepdim=True).to(others.dtype) * pairs.anchors

    def conflict(self, gradients: RowGradients) -> tuple[Tensor, Tensor]:
        """How far the pairs' gradients on each anchor go against each other.

        Returns:
            (m) 1 − ‖Σ_j g_ij‖ / Σ_j ‖g_ij‖: 0 where all point one way, 1 where they cancel; and
            (m) the mean of cos(g_ij, g_ik) over j ≠ k.
        """
        whole = self.combined(gradients, ratio(gradients.weight, self.norm))
        wide = gradients.norm.dtype
        conflict = 1 - ratio(whole.to(wide).norm(dim=1), gradients.norm.sum(dim=1))
        units = self.combined(gradients, ratio(gradients.weight.sign(), gradients.sine))
        count = (gradients.norm > 0).sum(dim=1).to(wide)
        others = count * (count - 1)
        return conflict, ratio(units.to(wide).square().sum(dim=1) - count, others)


def positive(x: Tensor) -> Tensor:
    return x.clamp_min(torch.finfo(x.dtype).tiny)


def ratio(over: Tensor, under: Tensor) -> Tensor:
    """Their ratio, 0 where the second is 0."""
    zero = under <= 0
    return (over / under.masked_fill(zero, 1)).masked_fill(zero, 0)
