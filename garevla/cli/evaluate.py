"""``garevla evaluate``."""

from __future__ import annotations

import sys

from garevla.cli.metrics import print_metrics

SUMMARY = "evaluate a trained model on the test split"


def run(arguments: list[str]) -> int:
    """Evaluate a checkpoint and print the figures."""
    from garevla.cli.flags import parse
    from garevla.training.config import EvaluateConfig

    config = parse("evaluate", SUMMARY, EvaluateConfig, arguments)
    from garevla.training.evaluate import evaluate_checkpoint

    print_metrics(evaluate_checkpoint(config, progress=sys.stderr.isatty()))
    return 0
