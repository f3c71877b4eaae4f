"""``garevla check-data``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from garevla.data.check import CheckReport

SUMMARY = "list the videos of a data set that cannot be used"

BAD_FILES = 1


def run(arguments: list[str]) -> int:
    """Check splits; returns 1 where there are bad files.

    The first of torchrun's processes, which share the files, prints the report. The others return
    0: torchrun would end the first one on account of theirs.
    """
    from garevla.cli.flags import parse
    from garevla.data.check_settings import CheckDataConfig

    config = parse("check-data", SUMMARY, CheckDataConfig, arguments)
    from garevla.data.check import check_split
    from garevla.data.layouts import layout_of
    from garevla.utils.processes import join_processes

    layout = layout_of(config.layout, config.annotation_dir)
    num_bad = 0
    with join_processes("cpu") as (processes, _):
        for split in config.splits or (layout.train_split, "test"):
            report = check_split(
                config.annotation_dir,
                config.video_dir,
                split,
                layout=config.layout,
                sampling=config.frame_sampling,
                num_workers=config.num_workers,
                progress=processes.is_first and sys.stderr.isatty(),
                processes=processes,
            )
            if processes.is_first:
                _print(split, report)
                num_bad += len(report.bad)
    return BAD_FILES if num_bad else 0


def _print(split: str, report: CheckReport) -> None:
    for line in report.lines():
        print(line)
    print(f"{split}: {len(report.bad)} of {report.num_checked} videos are bad")
    if report.of_unknown_length:
        print(f"{split}: {len(report.of_unknown_length)} do not say how long they are")
