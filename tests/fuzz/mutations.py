"""What is done to the bytes of a file."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def truncated(content: bytes, generator: np.random.Generator) -> bytes:
    """Its beginning."""
    return content[: int(generator.integers(0, len(content)))]


def flipped(content: bytes, generator: np.random.Generator) -> bytes:
    """With one to eight bytes changed."""
    changed = bytearray(content)
    for _ in range(int(generator.integers(1, 9))):
        changed[int(generator.integers(len(changed)))] ^= int(generator.integers(1, 256))
    return bytes(changed)


def holed(content: bytes, generator: np.random.Generator) -> bytes:
    """With up to a fifth of it zeroed, or filled with noise."""
    length = int(generator.integers(1, max(2, len(content) // 5)))
    start = int(generator.integers(0, max(1, len(content) - length)))
    filling = generator.bytes(length) if generator.random() < 0.5 else bytes(length)
    return content[:start] + filling[: len(content) - start] + content[start + length :]


MUTATIONS: dict[str, Callable[[bytes, np.random.Generator], bytes]] = {
    "truncation": truncated,
    "flips": flipped,
    "hole": holed,
}
