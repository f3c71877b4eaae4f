"""``garevla caption``."""

from __future__ import annotations

import sys

SUMMARY = "caption the frames of videos, for training with DiscoVLA"


def run(arguments: list[str]) -> int:
    """Caption frames, and name the videos that were left out."""
    from garevla.cli.flags import parse
    from garevla.data.captioning import CaptionConfig, run_captioning

    config = parse("caption", SUMMARY, CaptionConfig, arguments)
    report = run_captioning(config, progress=sys.stderr.isatty())
    for path, reason in report.bad:
        print(f"{path}: {reason}")
    print(
        f"{report.num_frames} frames of {report.num_videos} videos captioned, "
        f"{len(report.bad)} videos left out: {report.output}"
    )
    return 0
