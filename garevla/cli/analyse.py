"""``garevla analyse``."""

from __future__ import annotations

import sys

SUMMARY = "draw what a run's increments do to features, gradients and loss"


def run(arguments: list[str]) -> int:
    """Analyse a run's checkpoints and say where the page is."""
    from garevla.cli.flags import parse
    from garevla.training.evaluation_settings import AnalyseConfig

    config = parse("analyse", SUMMARY, AnalyseConfig, arguments, positional=["run"])
    from garevla.training.analyse import analyse_run

    print(analyse_run(config, progress=sys.stderr.isatty()))
    return 0
