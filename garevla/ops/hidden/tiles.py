"""A tile of pairs: from its factors to the products that the scores need, and back.

``TileKernels`` is what a backend provides. ``ComposedTiles`` puts it together from matrix products
and a few elementwise functions; a backend with kernels that keep the tile on chip does without.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from garevla.ops.hidden.factors import HiddenLayer
from garevla.ops.hidden.scores import Gradients, Products
from garevla.ops.products import linear, linear_into


class Dropout(NamedTuple):
    """The masks of a tile's pairs (:func:`garevla.ops.dropout.keep_mask`)."""

    probability: float
    seed: int
    first_text: int
    first_video: int


@dataclass(frozen=True)
class Tile:
    """b videos, a texts."""

    layer: HiddenLayer
    factors: dict[str, Tensor]
    """Of the tile's texts and videos."""
    coefficients: Tensor
    """(b, a) inverse deviations of the gaps, or (b, K, a) attention weights: what the layer makes
    the hidden vectors of."""
    dropout: Dropout | None


class TileMoments(NamedTuple):
    """Of a tile's increments, over its texts."""

    mean: Tensor  # (b, D)
    squares: Tensor  # (b, D) sum of the squared deviations from that mean


class MomentsGradient(NamedTuple):
    """∂L/∂Δ_ij = shift + slope·(Δ_ij − center), for each video and feature."""

    shift: Tensor  # (b, D)
    slope: Tensor  # (b, D)
    center: Tensor  # (b, D)


class Contracted(NamedTuple):
    """What a tile's increments come to."""

    products: Products
    moments: TileMoments | None
    kept: Any
    """For the backward pass of the same tile."""


LEAST_ROWS_ON_GPU = 2**15
"""Pairs of a tile: smaller ones are done before the host has launched the next."""


class TileKernels(ABC):
    """What a backend does with a tile."""

    explicit: ComposedTiles
    """Kernels that keep a tile's increments in memory, for what needs them there."""

    rows: int
    """Pairs of a tile on a CPU, the least on a GPU."""

    @abstractmethod
    def forward(self, tile: Tile, with_moments: bool) -> Contracted:
        """Make the increments, and contract them."""

    @abstractmethod
    def backward(
        self,
        tile: Tile,
        kept: Any,
        grad_products: Products,
        grad_moments: MomentsGradient | None,
    ) -> tuple[Tensor, Gradients]:
        """The gradients of ``tile.coefficients`` and of the factors; may overwrite ``kept``."""


class HiddenFunctions(Protocol):
    """The elementwise parts of a tile, and their gradients; H is a pair's hidden size."""

    rows: int
    """As :attr:`TileKernels.rows`."""

    def gap_hidden(self, tile: Tile, out: Tensor) -> None:
        """Write the hidden vectors (b, a, H)."""

    def gap_hidden_backward(self, tile: Tile, grad: Tensor) -> tuple[Tensor, ...]:
        """From ∂L/∂y (b, a, H), overwritten: gradients of the coefficients (b, a), of
        ``video_hidden`` (b, H), ``text_hidden`` (a, H) and ``shift`` (H)."""

    def attention_hidden(self, tile: Tile, mixed: Tensor, out: Tensor) -> Tensor:
        """Write the hidden vectors (b, a, H) of the mixed values (b, a, 2·H); return the inverse
        deviations (b, a) of the last LayerNorm."""

    def attention_hidden_backward(
        self, tile: Tile, grad: Tensor, hidden: Tensor, inverse: Tensor, out: Tensor
    ) -> Tensor:
        """From ∂L/∂y (b, a, H): write that of the mixed values (b, a, 2·H), return that of
        ``shift`` (2·H)."""

    def contract(
        self, increments: Tensor, text: Tensor, with_moments: bool
    ) -> tuple[Tensor, Tensor, TileMoments | None]:
        """t_i·Δ_ij (b, a), ‖Δ_ij‖² (b, a) and the moments of increments (b, a, D)."""

    def increment_gradient(
        self,
        increments: Tensor,
        text: Tensor,
        grad_text_product: Tensor,
        grad_norm_product: Tensor,
        grad_moments: MomentsGradient | None,
        out: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Add to ``out`` (b, a, D) what the gradients (b, a) of the products of :meth:`contract`
        and of the moments make of ∂L/∂Δ; return its sum (D) over all pairs and the gradient (a, D)
        of the texts."""

    def diversity(self, increments: Tensor, norm: Tensor, alpha: float) -> Tensor:
        """As :func:`garevla.ops.hidden.diversity.diversity`."""

    def diversity_gradient(
        self, increments: Tensor, norm: Tensor, alpha: float, grad_output: Tensor
    ) -> Tensor:
        """As :func:`garevla.ops.hidden.diversity.diversity_gradient`."""


@dataclass
class Kept:
    hidden: Tensor  # (b, a, H)
    increments: Tensor  # (b, a, D)
    inverse: Tensor | None  # (b, a) of the attention's last LayerNorm
    mixed: Tensor | None  # (b, a, 2·H), room for its gradient


class Workspace:
    """Memory that one tile after the other uses."""

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    def take(self, name: str, like: Tensor, *shape: int) -> Tensor:
        """A contiguous tensor of that shape, of whatever content."""
        count = 1
        for size in shape:
            count *= size
        buffer = self._buffers.get(name)
        if buffer is None or len(buffer) < count:
            buffer = self._buffers[name] = like.new_empty(count)
        return buffer[:count].view(shape)


class ComposedTiles(TileKernels):
    """A tile whose hidden vectors and increments lie in memory, near a cache."""

    def __init__(self, functions: HiddenFunctions, workspace: Workspace) -> None:
        self.rows = functions.rows
        self.functions = functions
        self.workspace = workspace
        self.explicit = self

    def forward(self, tile: Tile, with_moments: bool) -> Contracted:
        factors, take = tile.factors, self.workspace.take
        weight, text = factors["weight"], factors["text"]
        (videos, texts), (dim, size) = (
            tile.coefficients.shape[:: tile.coefficients.dim() - 1],
            (weight.shape),
        )
        hidden = take("hidden", text, videos, texts, size)
        inverse = mixed = None
        if tile.layer.kind == "gap":
            self.functions.gap_hidden(tile, hidden)
        else:
            mixed = take("mixed", text, videos, texts, 2 * size)
            torch.bmm(tile.coefficients.mT, factors["values"], out=mixed)
            inverse = self.functions.attention_hidden(tile, mixed, hidden)
        increments = take("increments", text, videos, texts, dim)
        flat = linear_into(increments.view(-1, dim), hidden.view(-1, size), weight, factors["bias"])
        increments = flat.view_as(increments)
        text_product, norm, moments = self.functions.contract(increments, text, with_moments)
        products = Products(text_product, norm, factors["frames"] @ increments.mT)
        return Contracted(products, moments, Kept(hidden, increments, inverse, mixed))

    def backward(
        self,
        tile: Tile,
        kept: Kept,
        grad_products: Products,
        grad_moments: MomentsGradient | None,
        grad_increments: Tensor | None = None,
    ) -> tuple[Tensor, Gradients]:
        """As :meth:`TileKernels.backward`.

        Args:
            grad_increments: (b, a, D), added to what follows from the others; overwritten.
        """
        factors, increments = tile.factors, kept.increments
        frames, weight = factors["frames"], factors["weight"]
        grad = grad_increments
        if grad is None:
            grad = self.workspace.take("gradient", increments, *increments.shape)
            torch.bmm(grad_products.frame.mT, frames, out=grad)
        else:
            grad.baddbmm_(grad_products.frame.mT, frames)
        grad_bias, grad_text = self.functions.increment_gradient(
            increments, factors["text"], grad_products.text, grad_products.norm, grad_moments, grad
        )
        size = weight.shape[1]
        flat = grad.view(-1, grad.shape[2])
        gradients = {
            "text": grad_text,
            "frames": grad_products.frame @ increments,
            "weight": linear(flat.T, kept.hidden.view(-1, size).T),
            "bias": grad_bias,
        }
        grad_hidden = self.workspace.take("increments", flat, *kept.hidden.shape)
        grad_hidden = linear_into(grad_hidden.view(-1, size), flat, weight.T).view_as(grad_hidden)
        if tile.layer.kind == "gap":
            grad_coefficients, video, text, shift = self.functions.gap_hidden_backward(
                tile, grad_hidden
            )
            gradients |= {"video_hidden": video, "text_hidden": text, "shift": shift}
        else:
            assert kept.inverse is not None
            assert kept.mixed is not None
            gradients["shift"] = self.functions.attention_hidden_backward(
                tile, grad_hidden, kept.hidden, kept.inverse, kept.mixed
            )
            grad_coefficients = factors["values"] @ kept.mixed.mT
            gradients["values"] = tile.coefficients @ kept.mixed
        return grad_coefficients, gradients

    def diversity(self, kept: Kept, norm: Tensor, alpha: float) -> Tensor:
        """As :func:`garevla.ops.hidden.diversity.diversity`, of what :meth:`forward` kept."""
        return self.functions.diversity(kept.increments, norm, alpha)

    def diversity_gradient(
        self, kept: Kept, norm: Tensor, alpha: float, grad_output: Tensor
    ) -> Tensor:
        """As :func:`garevla.ops.hidden.diversity.diversity_gradient`."""
        return self.functions.diversity_gradient(kept.increments, norm, alpha, grad_output)
