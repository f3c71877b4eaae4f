"""``garevla demo``."""

from __future__ import annotations

SUMMARY = "train and evaluate a small model on generated videos"


def run(arguments: list[str]) -> int:
    """Run the demonstration."""
    from garevla.cli.flags import parse
    from garevla.demo import DemoConfig, run_demo

    run_demo(parse("demo", SUMMARY, DemoConfig, arguments))
    return 0
