"""Standard errors of figures, by drawing videos anew."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

from garevla.evaluation.metrics import RetrievalMetrics


@dataclass(frozen=True)
class StandardErrors:
    """Standard errors of the figures of :class:`RetrievalMetrics` of the same names."""

    recall_at_1: float
    recall_at_5: float
    recall_at_10: float
    median_rank: float
    mean_rank: float

    def as_dict(self) -> dict[str, float]:
        """Return them by name, ready for JSON."""
        return asdict(self)


def standard_errors(
    ranks: np.ndarray, clusters: np.ndarray, *, num_resamples: int = 1000, seed: int = 0
) -> StandardErrors:
    """Standard deviations of the figures over bootstrap samples (Efron, 1979).

    Each sample draws as many clusters as there are, with replacement, and takes all ranks of a
    cluster as often as it was drawn: captions of one video are not independent of each other.

    Args:
        ranks: (N,) from 1.
        clusters: (N,) int64, the video of each query.
        num_resamples: number of samples, at least 2.
        seed: of the draws; equal seeds give equal errors.

    Raises:
        ValueError: arguments of the wrong shape, or less than 2 samples.
    """
    # Checks the ranks as well.
    figures = RetrievalMetrics.from_ranks(ranks)
    if clusters.shape != (figures.num_queries,):
        raise ValueError(f"clusters must have shape ({figures.num_queries},), got {clusters.shape}")
    if num_resamples < 2:
        raise ValueError(f"num_resamples must be at least 2, got {num_resamples}")
    order = np.argsort(ranks, kind="stable")
    ranks = np.asarray(ranks, dtype=np.float64)[order]
    names, cluster = np.unique(clusters[order], return_inverse=True)
    sizes = np.bincount(cluster)
    # Per cluster: hits among the first 1, 5, 10, and the sum of the ranks.
    sums = np.stack(
        [np.bincount(cluster, weights=ranks <= k) * 100 for k in (1, 5, 10)]
        + [np.bincount(cluster, weights=ranks)]
    )
    generator = np.random.default_rng(seed)
    samples = np.empty((num_resamples, 5))
    for sample in samples:
        drawn = np.bincount(generator.integers(len(names), size=len(names)), minlength=len(names))
        sample[[0, 1, 2, 4]] = sums @ drawn / (sizes @ drawn)
        sample[3] = _median(ranks, drawn[cluster])
    return StandardErrors(*samples.std(axis=0, ddof=1).tolist())


def _median(ascending: np.ndarray, times: np.ndarray) -> float:
    """Median of numbers each of which occurs some times."""
    last = np.cumsum(times)
    middle = np.searchsorted(last, [(last[-1] - 1) // 2, last[-1] // 2], side="right")
    return float(ascending[middle].mean())
