"""Parts of error messages and logs."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable

# Longer lists help nobody; the number is always given.
_NAMES_IN_AN_ERROR = 20


def shortened(names: Iterable[object], separator: str = ", ") -> str:
    """Join the first names of a list, saying how many more there are."""
    texts = [str(name) for name in names]
    more = len(texts) - _NAMES_IN_AN_ERROR
    return separator.join(
        texts[:_NAMES_IN_AN_ERROR] + ([f"... and {more} more"] if more > 0 else [])
    )


# What a file holds may be deep, and may hold itself.
_SHORT = reprlib.Repr()
_SHORT.maxlevel = 3
_SHORT.maxlist = _SHORT.maxdict = _SHORT.maxtuple = 40
_SHORT.maxstring = 200


def brief(value: object) -> str:
    """A value as it is written in Python, cut where that is long or deep."""
    text = _SHORT.repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def first_line(error: BaseException) -> str:
    """The first line of an error's message; its type where there is none."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0]


def check_error_or_skip(name: str, value: str) -> None:
    """Check an argument that says what to do about what is missing or bad.

    Raises:
        ValueError: neither ``"error"`` nor ``"skip"``.
    """
    if value not in ("error", "skip"):
        raise ValueError(f"{name} must be 'error' or 'skip', got {value!r}")
