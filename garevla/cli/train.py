"""``garevla train``."""

from __future__ import annotations

from garevla.cli.metrics import print_metrics
from garevla.cli.output import is_first_process

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
    if is_first_process():
        print_metrics(metrics, config.run.output_dir)
        print(f"written to {config.run.output_dir}")
    return 0
