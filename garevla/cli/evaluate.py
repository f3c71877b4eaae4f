"""``garevla evaluate``."""

from __future__ import annotations

import sys

from garevla.cli.metrics import print_metrics
from garevla.cli.output import is_first_process

SUMMARY = "evaluate a trained model on the test split"


def run(arguments: list[str]) -> int:
    """Evaluate a checkpoint; the first of torchrun's processes prints the figures."""
    from garevla.cli.flags import parse
    from garevla.training.config import EvaluateConfig

    config = parse("evaluate", SUMMARY, EvaluateConfig, arguments)
    from garevla.training.evaluate import evaluate_checkpoint

    metrics = evaluate_checkpoint(config, progress=sys.stderr.isatty())
    if is_first_process():
        print_metrics(metrics)
    return 0
