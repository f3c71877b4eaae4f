"""``garevla train``."""

from __future__ import annotations

import os

from garevla.cli.metrics import print_metrics

SUMMARY = "train a model, evaluating it after each epoch"


def run(arguments: list[str]) -> int:
    """Train; the first of torchrun's processes prints the figures."""
    from garevla.cli.flags import parse
    from garevla.training.config import TrainConfig
    from garevla.training.settings_file import SettingsFile

    config = parse("train", SUMMARY, TrainConfig, arguments, config_action=SettingsFile)
    # Only now: this takes seconds, which wrong flags need not wait for.
    from garevla.training.loop import train

    metrics = train(config)
    if int(os.environ.get("RANK", "0")) == 0:
        print_metrics(metrics, config.run.output_dir)
        print(f"written to {config.run.output_dir}")
    return 0
