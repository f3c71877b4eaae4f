"""``garevla cache``."""

from __future__ import annotations

import sys

from garevla.cli.check_data import BAD_FILES

SUMMARY = "decode videos once, for training and evaluation to read their frames"


def run(arguments: list[str]) -> int:
    """Cache frames; returns 1 where there are bad files."""
    from garevla.cli.flags import parse
    from garevla.data.cache_settings import CacheConfig

    config = parse("cache", SUMMARY, CacheConfig, arguments)
    from garevla.data.caching import run_caching

    report = run_caching(config, progress=sys.stderr.isatty())
    for line in report.check.lines():
        print(line)
    if report.check.of_unknown_length:
        print(f"{len(report.check.of_unknown_length)} videos do not say how long they are")
    print(
        f"{report.num_new} videos cached, {report.num_kept} were there, "
        f"{len(report.check.bad)} are bad: {report.folder}"
    )
    return BAD_FILES if report.check.bad else 0
