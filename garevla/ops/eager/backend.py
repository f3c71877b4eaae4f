"""The ``eager`` backend: the definition of every operation, in plain PyTorch."""

from __future__ import annotations

from garevla.ops.backends import Backend, Implementation, register_backend
from garevla.ops.eager.direction import direction, sampled_direction
from garevla.ops.eager.frame_alignment import frame_alignment
from garevla.ops.eager.hidden import EagerFunctions
from garevla.ops.eager.pairs import pair_similarity, pair_terms
from garevla.ops.eager.statistics import pair_statistics
from garevla.ops.hidden.operators import hidden_operations
from garevla.ops.hidden.tiles import ComposedTiles, Workspace

_NAME = "eager"


def _tiles(precision: str) -> ComposedTiles:
    return ComposedTiles(EagerFunctions(), Workspace())


_FUNCTIONS = (
    pair_similarity,
    pair_terms,
    pair_statistics,
    direction,
    sampled_direction,
    frame_alignment,
)

register_backend(
    Backend(
        _NAME,
        unavailable=lambda device: None,
        operations={
            **{function.__name__: Implementation(function) for function in _FUNCTIONS},
            **{
                name: Implementation(function)
                for name, function in hidden_operations(_NAME, _tiles).items()
            },
        },
        preference={"*": 0},
    )
)
