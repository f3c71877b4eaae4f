"""Figures of features alone."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from garevla.utils.slices import slices_of

# Pairs whose distances exist at once.
_AT_ONCE = 2**22


def modality_gap(text_features: Tensor, video_features: Tensor) -> Tensor:
    """Distance of the centroids of normalized features (Liang et al., NeurIPS 2022), 0-d.

    Args:
        text_features: (A, D).
        video_features: (B, D).
    """
    text, video = (F.normalize(x, dim=-1).mean(dim=0) for x in (text_features, video_features))
    return (text - video).norm()


def alignment(one: Tensor, other: Tensor) -> Tensor:
    """Mean squared distance of pairs of normalized features (Wang & Isola, ICML 2020), 0-d.

    Args:
        one, other: (P, D), of which the rows belong together.
    """
    return (F.normalize(one, dim=-1) - F.normalize(other, dim=-1)).square().sum(dim=-1).mean()


def uniformity(features: Tensor) -> Tensor:
    """log mean exp(−2 ‖x_i − x_j‖²) over i ≠ j of normalized features (Wang & Isola), 0-d.

    The lower, the more evenly they lie on the sphere; 0 where all are one. A few rows of distances
    exist at a time.

    Args:
        features: (N, D); of one, NaN.
    """
    unit, count = F.normalize(features, dim=-1), len(features)
    total = unit.new_full((), -torch.inf)
    for rows in slices_of(count, max(1, _AT_ONCE // count)):
        exponents = 4 * (unit[rows] @ unit.T - 1)
        itself = torch.arange(rows.start, rows.stop, device=unit.device).unsqueeze(1)
        exponents.scatter_(1, itself, -torch.inf)
        total = torch.logaddexp(total, exponents.flatten().logsumexp(dim=0))
    if count < 2:
        return total.new_full((), torch.nan)
    return total - torch.tensor(float(count * (count - 1)), dtype=total.dtype).log()
