"""Counts of numbers that come a few at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Histogram:
    """Counts in bins of equal width; what lies outside is in the first or the last one.

    Attributes:
        low, high: ends of the first and the last bin.
        counts: by what is counted, such as ``"right"`` and ``"wrong"`` pairs.
    """

    low: float
    high: float
    counts: dict[str, list[int]]

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {"low": self.low, "high": self.high, "counts": self.counts}


class StreamedHistogram:
    """Counts as they come.

    Args:
        low, high: ends of the first and the last bin.
        bins: how many.
    """

    def __init__(self, low: float, high: float, bins: int) -> None:
        self.low, self.high = low, high if high > low else low + 1.0
        self.bins = bins
        self._counts: dict[str, Tensor] = {}

    def add(self, name: str, values: Tensor) -> None:
        """Count finite values under a name."""
        values = values[values.isfinite()].clamp(self.low, self.high)
        counts = torch.histc(values, self.bins, self.low, self.high).long()
        self._counts[name] = self._counts.get(name, 0) + counts

    @property
    def value(self) -> Histogram:
        """The counts so far."""
        counts = {name: each.tolist() for name, each in self._counts.items()}
        return Histogram(self.low, self.high, counts)
