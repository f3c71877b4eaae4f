"""How time and memory grow with the batch: power laws fitted, and used to predict."""

from __future__ import annotations

import math
from collections.abc import Sequence


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float | None:
    """Slope of the least-squares line through logarithms; None with fewer than two sizes."""
    points = [(math.log(x), math.log(y)) for x, y in zip(sizes, values, strict=True) if y > 0]
    if len({x for x, _ in points}) < 2:
        return None
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / spread


def predict(
    sizes: Sequence[int],
    values: Sequence[float],
    size: int,
    *,
    least: float = 1.0,
    usual: float = 2.0,
    most: float,
) -> float | None:
    """Value at a larger size from those measured, the exponent kept within bounds.

    The last two sizes decide the exponent; with one, it is ``usual``. None with none.
    """
    if not sizes:
        return None
    slope = exponent(sizes[-2:], values[-2:])
    slope = usual if slope is None else min(max(slope, least), most)
    return values[-1] * (size / sizes[-1]) ** slope
