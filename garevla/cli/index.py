"""``garevla index``."""

from __future__ import annotations

import sys

SUMMARY = "make an index of a folder of videos, or bring it up to date"


def run(arguments: list[str]) -> int:
    """Index videos, and name those that cannot be."""
    from garevla.cli.flags import parse
    from garevla.search.settings import IndexConfig

    config = parse("index", SUMMARY, IndexConfig, arguments, positional=("video_dir",))
    from garevla.search.indexing import index_videos

    report = index_videos(config, progress=sys.stderr.isatty())
    for path, reason in report.bad:
        print(f"{path}: {reason}")
    for line in report.lines():
        print(line)
    return 0
