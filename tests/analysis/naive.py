"""The figures of an analysis written down directly, every increment there, gradients by autograd.

Anchors are what is corrected, M of them, and others what they are compared with, N.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from garevla.head.info_nce import info_nce


@dataclass
class Naive:
    anchors: Tensor  # (M, D)
    others: Tensor  # (M, N, D)
    means: Tensor  # (N, D)
    increments: Tensor  # (M, N, D)
    targets: Tensor  # (A,)
    scale: float
    exchanged: bool  # the anchors are the videos

    def __post_init__(self) -> None:
        num_anchors, num_others = self.others.shape[:2]
        self.right = torch.zeros(num_anchors, num_others, dtype=torch.bool)
        texts = torch.arange(len(self.targets))
        if self.exchanged:
            self.right[self.targets, texts] = True
        else:
            self.right[texts, self.targets] = True

    def similarity(self, increments: Tensor, anchors: Tensor | None = None) -> Tensor:
        corrected = (self.anchors if anchors is None else anchors).unsqueeze(1) + increments
        return F.cosine_similarity(corrected, self.others, dim=2)

    def loss(self, increments: Tensor) -> Tensor:
        similarity = self.similarity(increments)
        return info_nce(similarity.T if self.exchanged else similarity, self.scale, self.targets)

    def gradient(self, increments: Tensor) -> Tensor:
        increments = increments.clone().requires_grad_()
        return torch.autograd.grad(self.loss(increments), increments)[0]

    def ideal(self, lengths: Tensor) -> Tensor:
        """Every increment against its gradient, of lengths (M, N)."""
        gradient = self.gradient(torch.zeros_like(self.increments))
        return -lengths.unsqueeze(2) * F.normalize(gradient, dim=2)

    def pair_values(self) -> dict[str, Tensor]:
        """(M, N) by name."""
        zero, delta = torch.zeros_like(self.increments), self.increments
        gap = self.means - self.anchors.unsqueeze(1)
        found = {
            "increment_norm": delta.norm(dim=2),
            "gap_cosine": F.cosine_similarity(delta, gap, dim=2),
            "ideal_cosine": F.cosine_similarity(delta, -self.gradient(zero), dim=2, eps=1e-30),
            "descent_cosine": F.cosine_similarity(delta, -self.gradient(delta), dim=2, eps=1e-30),
        }
        for stage, increments in (("before", zero), ("after", delta)):
            logits = self.scale * self.similarity(increments)
            found[f"similarity_{stage}"] = logits / self.scale
            found[f"probability_difference_{stage}"] = (logits.softmax(1) - logits.softmax(0)).abs()
        return found

    def gradients_of_anchors(self, increments: Tensor) -> list[Tensor]:
        """What each pair contributes to the gradient of its anchor, (N, D) for each anchor."""
        weight = torch.autograd.functional.jacobian(
            lambda s: info_nce(s.T if self.exchanged else s, self.scale, self.targets),
            self.similarity(increments),
        )
        found = []
        for i, anchor in enumerate(self.anchors):
            of_others = torch.autograd.functional.jacobian(
                lambda a, i=i: F.cosine_similarity(a + increments[i], self.others[i], dim=1), anchor
            )
            found.append(weight[i].unsqueeze(1) * of_others)
        return found

    def conflict(self, increments: Tensor) -> tuple[list[float], list[float]]:
        """1 − ‖Σ g‖ / Σ ‖g‖ and the mean cosine of two pairs' gradients, of each anchor."""
        conflicts, cosines = [], []
        for gradients in self.gradients_of_anchors(increments):
            total = gradients.norm(dim=1).sum()
            conflicts.append(float(1 - gradients.sum(0).norm() / total))
            pairs = itertools.permutations(gradients, 2)
            each = [float(F.cosine_similarity(a, b, dim=0, eps=1e-30)) for a, b in pairs]
            cosines.append(sum(each) / len(each))
        return conflicts, cosines

    def right_features(self, increments: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Normalized anchors and others of right pairs (P, D), and the anchors' mean of each anchor
        that has some."""
        corrected = F.normalize(self.anchors.unsqueeze(1) + increments, dim=2)
        own = [corrected[i, self.right[i]].mean(0) for i in range(len(corrected))]
        own = [each for each, right in zip(own, self.right, strict=True) if right.any()]
        return corrected[self.right], F.normalize(self.others, dim=2)[self.right], torch.stack(own)


def uniformity(features: Tensor) -> float:
    unit = F.normalize(features, dim=1)
    pairs = itertools.combinations(unit, 2)
    return float(torch.stack([(-2 * (a - b).square().sum()).exp() for a, b in pairs]).mean().log())
