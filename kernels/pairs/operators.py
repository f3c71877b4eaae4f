"""The pair operators, registered with torch.library under ``garevla_triton``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from garevla.kernels.backend import NAME, NAMESPACE
from garevla.kernels.pairs import backward, scores, statistics
from garevla.kernels.pairs.arguments import PairArguments
from garevla.ops.operators import register

_PAIR = "Tensor text, Tensor[] factors, float pool_temperature, float[] layer_norm_eps"
_PAIR += ", str precision"
_SCHEMAS = {
    "pair_similarity": f"({_PAIR}) -> Tensor",
    "pair_terms": f"({_PAIR}) -> (Tensor, Tensor, Tensor)",
    "pair_terms_backward": (
        f"({_PAIR}, Tensor? grad_similarity, Tensor? grad_coefficients, Tensor? grad_norm) "
        "-> Tensor[]"
    ),
    "pair_statistics": (
        f"({_PAIR}, Tensor logit_scale, Tensor targets, Tensor? samples) -> "
        "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
    ),
    "pair_statistics_backward": (
        f"({_PAIR}, Tensor logit_scale, Tensor targets, Tensor? samples, Tensor row_logsumexp, "
        "Tensor column_logsumexp, Tensor norm_mean, Tensor coefficient_mean, Tensor[] gradients, "
        "Tensor? grad_sampled) -> Tensor[]"
    ),
}
# As many arguments come from the pairs.
_COUNT = 5


def pair_similarity(*pair: Any) -> Tensor:
    return scores.pair_scores(PairArguments(*pair), with_terms=False)[0]


def pair_terms(*pair: Any) -> tuple[Tensor, Tensor, Tensor]:
    return scores.pair_scores(PairArguments(*pair), with_terms=True)


def pair_terms_backward(*arguments: Any) -> list[Tensor]:
    pair = PairArguments(*arguments[:_COUNT])
    return backward.pair_terms_backward(pair, *arguments[_COUNT:])


def pair_statistics(*arguments: Any) -> tuple[Tensor, ...]:
    return statistics.pair_statistics(PairArguments(*arguments[:_COUNT]), *arguments[_COUNT:])


def pair_statistics_backward(*arguments: Any) -> list[Tensor]:
    pair = PairArguments(*arguments[:_COUNT])
    return backward.pair_statistics_backward(pair, *arguments[_COUNT:])


def _register() -> None:
    implementations = (
        pair_similarity,
        pair_terms,
        pair_terms_backward,
        pair_statistics,
        pair_statistics_backward,
    )
    for implementation in implementations:
        name = implementation.__name__
        torch.library.define(f"{NAMESPACE}::{name}", _SCHEMAS[name])
        torch.library.impl(f"{NAMESPACE}::{name}", ("cpu", "cuda"), implementation)
    register(NAMESPACE, NAME, num_constants=3)


_register()
