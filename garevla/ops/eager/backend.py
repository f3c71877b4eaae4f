"""The ``eager`` backend: the definition of every operation, in plain PyTorch."""

from __future__ import annotations

from garevla.ops.backends import Backend, Implementation, register_backend
from garevla.ops.eager.direction import direction, sampled_direction
from garevla.ops.eager.frame_alignment import frame_alignment
from garevla.ops.eager.pairs import pair_similarity, pair_terms
from garevla.ops.eager.statistics import pair_statistics

register_backend(
    Backend(
        "eager",
        unavailable=lambda device: None,
        operations={
            function.__name__: Implementation(function)
            for function in (
                pair_similarity,
                pair_terms,
                pair_statistics,
                direction,
                sampled_direction,
                frame_alignment,
            )
        },
        preference={"*": 0},
    )
)
