"""The command line, in this process."""

from __future__ import annotations

from garevla import cli

PRINT_CONFIG = ("--data.annotation_dir", "a", "--data.video_dir", "v", "--print_config")


def exit_code(*arguments: str) -> int:
    try:
        return cli.main(arguments)
    except SystemExit as exit_:
        return exit_.code
