"""``garevla evaluate``."""

from __future__ import annotations

import sys

SUMMARY = "evaluate a trained model on the test split"


def run(arguments: list[str]) -> int:
    """Evaluate a checkpoint and print the figures with their protocol."""
    from garevla.cli.flags import parse
    from garevla.training.config import EvaluateConfig

    config = parse("evaluate", SUMMARY, EvaluateConfig, arguments)
    from garevla.training.evaluate import evaluate_checkpoint

    print(evaluate_checkpoint(config, progress=sys.stderr.isatty()))
    return 0
