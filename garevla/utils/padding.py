"""What padded frames, those behind the last of a short video, do."""

from __future__ import annotations

from typing import Literal, get_args

Padding = Literal["ignored", "published"]
"""``"ignored"``: they take no part in anything. ``"published"``: they are encoded and seen by ψ as
in the published code of GARE, and left out of the pooling alone."""


def check_padding(padding: str) -> None:
    """Raise ValueError unless it is one of the two."""
    if padding not in get_args(Padding):
        raise ValueError(f"padding must be one of {get_args(Padding)}, got {padding!r}")
