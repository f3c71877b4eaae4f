"""Captions of anything, whose best scores in an index tell what a score is worth."""

from __future__ import annotations

from pathlib import Path

_SHIPPED = Path(__file__).parent / "bank.txt"


def read_bank(path: Path | None) -> list[str]:
    """The captions of a file, one a line; of the one that comes with garevla by default.

    Raises:
        OSError: the file cannot be read.
        ValueError: it has less than two different captions.
    """
    path = _SHIPPED if path is None else path
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeError as error:
        raise ValueError(f"bank: {path} is not a text in UTF-8: {error}") from error
    captions = list(dict.fromkeys(filter(None, map(str.strip, text.splitlines()))))
    if len(captions) < 2:
        raise ValueError(f"bank: {path} must have at least 2 captions, one a line")
    return captions
