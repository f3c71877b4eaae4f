"""Warnings that a process gives once, however often their reason comes up."""

from __future__ import annotations

import sys
import warnings

_GIVEN: set[str] = set()


def warn_once(topic: str, message: str) -> None:
    """Warn of a topic, at the user's line, unless this process has done so."""
    if topic in _GIVEN:
        return
    _GIVEN.add(topic)
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and _package_of(frame.f_globals) in ("garevla", "torch"):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)


def _package_of(names: dict[str, object]) -> str:
    return str(names.get("__name__")).partition(".")[0]
