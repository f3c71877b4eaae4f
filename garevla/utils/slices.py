"""Ranges in pieces."""

from __future__ import annotations


def slices_of(length: int, size: int) -> list[slice]:
    """0..length in slices of at most ``size``."""
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]
