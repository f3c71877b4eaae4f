"""How commands print figures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from garevla.evaluation import RetrievalMetrics


def print_metrics(metrics: dict[str, RetrievalMetrics], output_dir: Path) -> None:
    """Print the last figures of a run as a table, and the protocol that its log has of them."""
    from garevla.evaluation import metrics_table
    from garevla.training.log import read_metrics

    print(metrics_table(metrics))
    protocols = [
        r["protocol"] for r in read_metrics(output_dir / "metrics.jsonl") if "protocol" in r
    ]
    # Logs of earlier versions have none.
    if protocols:
        print(f"protocol: {protocols[-1]}")
