"""``garevla env``."""

from __future__ import annotations

SUMMARY = "print versions, devices and backends for a bug report"


def run(arguments: list[str]) -> int:
    """Print what a bug report needs."""
    from garevla.utils.env import main

    main(arguments)
    return 0
