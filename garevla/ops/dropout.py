"""Dropout masks that are functions of a seed and a pair's indices, and where seeds come from.

A mask is never stored: forward, backward and every backend compute the same bits again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

NAMESPACE = "garevla_dropout"

_given: ContextVar[int | None] = ContextVar("garevla_dropout_seed", default=None)

# Philox4x32-10 (Salmon et al., SC 2011): multipliers of the counter, increments of the key.
_MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
_INCREMENTS = 0x9E3779B9, 0xBB67AE85
_ROUNDS = 10
_WORD = 0xFFFFFFFF
WORDS = 4
"""Random words of 32 bits that one evaluation of the generator gives."""


@contextmanager
def dropout_seed(seed: int) -> Iterator[None]:
    """Let every call inside draw its pairs' dropout masks from this seed.

    Outside, each forward pass takes a seed from torch's global CPU generator, which
    ``torch.manual_seed`` seeds. The masks of a seed are the same in every backend.

    Args:
        seed: in [0, 2⁶³).

    Raises:
        ValueError: a seed out of range.
    """
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed must be in [0, 2**63), got {seed}")
    token = _given.set(seed)
    try:
        yield
    finally:
        _given.reset(token)


def draw_seed() -> Tensor:
    """A seed, 0-d int64 on the CPU: the one that :func:`dropout_seed` gives, or a new one."""
    return torch.ops.garevla_dropout.draw_seed()


def threshold(probability: float) -> int:
    """A number is kept where its random word, unsigned, is at least this."""
    return int(probability * 2**32)


def keep_mask(
    seed: Tensor | int, probability: float, text_index: Tensor, video_index: Tensor, size: int
) -> Tensor:
    """Which of ``size`` numbers of each pair stay.

    Philox4x32-10 with the key (seed mod 2³², seed div 2³²) and the counter (d div 4, j, i, 0) for
    number d of text i and video j; word d mod 4 of the result decides.

    Args:
        seed: an int, or 0-d int64 on the indices' device.
        probability: of being dropped.
        text_index, video_index: int64, of shapes that broadcast to the pairs'.

    Returns:
        bool, the pairs' shape with ``size`` appended.
    """
    shape = torch.broadcast_shapes(text_index.shape, video_index.shape)
    blocks = torch.arange(-(-size // WORDS), device=text_index.device)
    full = (*shape, len(blocks))
    counter = [
        blocks.expand(full),
        video_index.unsqueeze(-1).expand(full),
        text_index.unsqueeze(-1).expand(full),
        torch.zeros((), dtype=torch.int64, device=text_index.device).expand(full),
    ]
    words = torch.stack(_philox(counter, (seed & _WORD, seed >> 32)), dim=-1)
    return words.flatten(-2)[..., :size] >= threshold(probability)


def _philox(counter: list[Tensor], key: tuple[Tensor | int, ...]) -> list[Tensor]:
    """Four words of 32 bits for each counter of four, all in int64."""
    for _ in range(_ROUNDS):
        first, second = (counter[2 * n] * _MULTIPLIERS[n] for n in range(2))
        # The product may wrap around into the sign: shifted, its upper word is right all the same.
        counter = [
            ((second >> 32) & _WORD) ^ counter[1] ^ key[0],
            second & _WORD,
            ((first >> 32) & _WORD) ^ counter[3] ^ key[1],
            first & _WORD,
        ]
        key = (key[0] + _INCREMENTS[0]) & _WORD, (key[1] + _INCREMENTS[1]) & _WORD
    return counter


def _draw() -> Tensor:
    given = _given.get()
    return torch.randint(2**63 - 1, ()) if given is None else torch.tensor(given)


# An operator, so that a compiled function draws anew in every call.
torch.library.define(
    f"{NAMESPACE}::draw_seed", "() -> Tensor", tags=(torch.Tag.nondeterministic_seeded,)
)
torch.library.impl(f"{NAMESPACE}::draw_seed", "CompositeExplicitAutograd", _draw)
torch.library.register_fake(
    f"{NAMESPACE}::draw_seed", lambda: torch.empty((), dtype=torch.int64, device="cpu")
)
