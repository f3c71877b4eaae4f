"""The hidden layers' elementwise parts, compiled (csrc/operators/tiles.h)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from garevla.ops.hidden.tiles import MomentsGradient, Tile, TileMoments

NAMESPACE = "garevla_tiles"


class NativeFunctions:
    """:class:`garevla.ops.hidden.tiles.HiddenFunctions` in C++ and CUDA."""

    rows = 4096

    def __init__(self) -> None:
        self._run = getattr(torch.ops, NAMESPACE)

    def gap_hidden(self, tile: Tile, out: Tensor) -> None:
        self._run.gap_hidden(*_gap(tile), out)

    def gap_hidden_backward(self, tile: Tile, grad: Tensor) -> tuple[Tensor, ...]:
        return self._run.gap_hidden_backward(*_gap(tile), grad)

    def attention_hidden(self, tile: Tile, mixed: Tensor, out: Tensor) -> Tensor:
        eps = tile.layer.layer_norm_eps[2]
        return self._run.attention_hidden(mixed, tile.factors["shift"], eps, *_dropout(tile), out)

    def attention_hidden_backward(
        self, tile: Tile, grad: Tensor, hidden: Tensor, inverse: Tensor, out: Tensor
    ) -> Tensor:
        return self._run.attention_hidden_backward(grad, hidden, inverse, *_dropout(tile), out)

    def contract(
        self, increments: Tensor, text: Tensor, with_moments: bool
    ) -> tuple[Tensor, Tensor, TileMoments | None]:
        product, norm, *moments = self._run.contract(increments, text, with_moments)
        return product, norm, TileMoments(*moments) if with_moments else None

    def increment_gradient(
        self,
        increments: Tensor,
        text: Tensor,
        grad_text_product: Tensor,
        grad_norm_product: Tensor,
        grad_moments: MomentsGradient | None,
        out: Tensor,
    ) -> tuple[Tensor, Tensor]:
        return self._run.increment_gradient(
            increments, text, grad_text_product, grad_norm_product, list(grad_moments or ()), out
        )

    def diversity(self, increments: Tensor, norm: Tensor, alpha: float) -> Tensor:
        return self._run.diversity(increments, norm, alpha)

    def diversity_gradient(
        self, increments: Tensor, norm: Tensor, alpha: float, grad_output: Tensor
    ) -> Tensor:
        return self._run.diversity_gradient(increments, norm, alpha, grad_output)


def _gap(tile: Tile) -> tuple[Any, ...]:
    factors = [tile.factors[name] for name in ("video_hidden", "text_hidden", "shift")]
    return tile.coefficients, *factors, tile.layer.activation, *_dropout(tile)


def _dropout(tile: Tile) -> tuple[Any, ...]:
    return tile.dropout or (0.0, 0, 0, 0)
