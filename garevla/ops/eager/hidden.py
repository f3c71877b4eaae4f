"""The hidden layers' elementwise parts, eager: what every backend must agree with."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from garevla.ops.dropout import keep_mask
from garevla.ops.hidden.diversity import diversity, diversity_gradient
from garevla.ops.hidden.tiles import MomentsGradient, Tile, TileMoments


def activate(name: str, x: Tensor) -> Tensor:
    """An activation by its name in ``ACTIVATIONS``."""
    if name == "gelu":
        return F.gelu(x)
    if name == "gelu_tanh":
        return F.gelu(x, approximate="tanh")
    if name == "silu":
        return F.silu(x)
    if name == "relu":
        return F.relu(x)
    return x * torch.sigmoid(1.702 * x)


def activation_slope(name: str, x: Tensor) -> Tensor:
    """The derivative of an activation."""
    if name == "gelu":
        density = torch.exp(-0.5 * x.square()) / math.sqrt(2 * math.pi)
        return 0.5 * (1 + torch.erf(x * math.sqrt(0.5))) + x * density
    if name == "gelu_tanh":
        inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x.pow(3))
        slope = math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * x.square())
        tanh = torch.tanh(inner)
        return 0.5 * (1 + tanh) + 0.5 * x * (1 - tanh.square()) * slope
    if name == "relu":
        return (x > 0).to(x.dtype)
    rate = 1.0 if name == "silu" else 1.702
    gate = torch.sigmoid(rate * x)
    return gate * (1 + rate * x * (1 - gate))


def mask_of(tile: Tile, like: Tensor) -> Tensor | None:
    """The dropout mask (b, a, H) of a tile, 0 or 1 / (1 − p)."""
    if tile.dropout is None:
        return None
    probability, seed, first_text, first_video = tile.dropout
    videos, texts, size = like.shape
    keep = keep_mask(
        seed,
        probability,
        torch.arange(first_text, first_text + texts, device=like.device),
        torch.arange(first_video, first_video + videos, device=like.device).unsqueeze(1),
        size,
    )
    return keep / torch.tensor(1 - probability, dtype=like.dtype, device=like.device)


class EagerFunctions:
    """:class:`garevla.ops.hidden.tiles.HiddenFunctions` in plain PyTorch."""

    # Temporaries are of several MB. With twice the rows glibc's allocator gives them back to the
    # system and fetches them anew each time, which can take longer than all else.
    rows = 2048

    def gap_hidden(self, tile: Tile, out: Tensor) -> None:
        hidden = activate(tile.layer.activation, self._before(tile)[1])
        mask = mask_of(tile, out)
        out.copy_(hidden if mask is None else hidden * mask)

    def gap_hidden_backward(self, tile: Tile, grad: Tensor) -> tuple[Tensor, ...]:
        gap, before = self._before(tile)
        if (mask := mask_of(tile, grad)) is not None:
            grad *= mask
        grad *= activation_slope(tile.layer.activation, before)
        grad_coefficients = (grad * gap).sum(dim=2)
        shift = grad.sum(dim=(0, 1))
        grad *= tile.coefficients.unsqueeze(2)
        return grad_coefficients, grad.sum(dim=1), -grad.sum(dim=0), shift

    def _before(self, tile: Tile) -> tuple[Tensor, Tensor]:
        """a_j − b_i and what goes into the activation, (b, a, H)."""
        factors = tile.factors
        gap = factors["video_hidden"].unsqueeze(1) - factors["text_hidden"]
        return gap, torch.addcmul(factors["shift"], tile.coefficients.unsqueeze(2), gap)

    def attention_hidden(self, tile: Tile, mixed: Tensor, out: Tensor) -> Tensor:
        plain, masked = (mixed + tile.factors["shift"]).chunk(2, dim=2)
        mask = mask_of(tile, out)
        normed = plain + (masked if mask is None else masked * mask)
        normed -= normed.mean(dim=2, keepdim=True)
        inverse = (normed.square().mean(dim=2) + tile.layer.layer_norm_eps[2]).rsqrt()
        torch.mul(normed, inverse.unsqueeze(2), out=out)
        return inverse

    def attention_hidden_backward(
        self, tile: Tile, grad: Tensor, hidden: Tensor, inverse: Tensor, out: Tensor
    ) -> Tensor:
        along = (grad * hidden).mean(dim=2, keepdim=True)
        grad = (grad - grad.mean(dim=2, keepdim=True) - hidden * along) * inverse.unsqueeze(2)
        mask = mask_of(tile, grad)
        torch.cat([grad, grad if mask is None else grad * mask], dim=2, out=out)
        return out.sum(dim=(0, 1))

    def contract(
        self, increments: Tensor, text: Tensor, with_moments: bool
    ) -> tuple[Tensor, Tensor, TileMoments | None]:
        moments = None
        if with_moments:
            mean = increments.mean(dim=1)
            squares = (increments - mean.unsqueeze(1)).square().sum(dim=1)
            moments = TileMoments(mean, squares)
        return (increments * text).sum(dim=2), increments.square().sum(dim=2), moments

    def increment_gradient(
        self,
        increments: Tensor,
        text: Tensor,
        grad_text_product: Tensor,
        grad_norm_product: Tensor,
        grad_moments: MomentsGradient | None,
        out: Tensor,
    ) -> tuple[Tensor, Tensor]:
        out.addcmul_(grad_text_product.unsqueeze(2), text)
        out.addcmul_(grad_norm_product.unsqueeze(2), increments, value=2)
        if grad_moments is not None:
            shift, slope, center = (x.unsqueeze(1) for x in grad_moments)
            out.addcmul_(slope, increments - center).add_(shift)
        grad_text = torch.einsum("ba,bad->ad", grad_text_product, increments)
        return out.sum(dim=(0, 1)), grad_text

    diversity = staticmethod(diversity)
    diversity_gradient = staticmethod(diversity_gradient)
