"""How much the eager operations hold at a time."""

from __future__ import annotations

CHUNK_ELEMENTS = 2**22
"""Elements of the largest tensor of one chunk. Bounds memory; small enough to stay near a cache."""
