"""Which process prints what a command found."""

from __future__ import annotations

import os


def is_first_process() -> bool:
    """Whether this process is the first of those that torchrun started, or alone."""
    return int(os.environ.get("RANK", "0")) == 0
