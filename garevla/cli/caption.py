"""``garevla caption``."""

from __future__ import annotations

import dataclasses
import sys

SUMMARY = "caption the frames of videos, for training with DiscoVLA"


def run(arguments: list[str]) -> int:
    """Caption frames; the first of torchrun's processes names the videos that were left out."""
    from garevla.cli.flags import parse
    from garevla.data.captioning import CaptionConfig, run_captioning
    from garevla.utils.processes import join_processes

    config = parse("caption", SUMMARY, CaptionConfig, arguments)
    with join_processes(config.device) as (processes, device):
        own = dataclasses.replace(config, device=str(device))
        show_bar = processes.is_first and sys.stderr.isatty()
        report = run_captioning(own, processes, progress=show_bar)
    if not processes.is_first:
        return 0
    for path, reason in report.bad:
        print(f"{path}: {reason}")
    print(
        f"{report.num_frames} frames of {report.num_videos} videos captioned, "
        f"{len(report.bad)} videos left out: {report.output}"
    )
    return 0
