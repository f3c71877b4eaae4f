"""How commands print figures."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from garevla.evaluation import RetrievalMetrics


def print_metrics(metrics: dict[str, RetrievalMetrics]) -> None:
    """Print the figures of both directions as a table."""
    from garevla.evaluation import metrics_table

    print(metrics_table(metrics))
