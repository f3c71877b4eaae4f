"""``garevla evaluate``."""

from __future__ import annotations

import sys

from garevla.cli.output import is_first_process

SUMMARY = "evaluate a trained model on the test split"


def run(arguments: list[str]) -> int:
    """Evaluate a checkpoint; the first of torchrun's processes prints figures and protocol."""
    from garevla.cli.flags import parse
    from garevla.training.evaluation_settings import EvaluateConfig

    config = parse("evaluate", SUMMARY, EvaluateConfig, arguments)
    from garevla.training.evaluate import evaluate_checkpoint

    evaluation = evaluate_checkpoint(config, progress=sys.stderr.isatty())
    if is_first_process():
        print(evaluation)
    return 0
