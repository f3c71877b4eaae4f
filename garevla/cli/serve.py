"""``garevla serve``."""

from __future__ import annotations

import contextlib

SUMMARY = "search indexed videos in a browser"


def run(arguments: list[str]) -> int:
    """Serve an index until it is interrupted."""
    from garevla.cli.flags import parse
    from garevla.serve.settings import ServeConfig

    config = parse("serve", SUMMARY, ServeConfig, arguments, positional=("library",))
    from garevla.serve.run import serve

    # Ctrl+C is how it ends.
    with contextlib.suppress(KeyboardInterrupt):
        serve(config)
    return 0
