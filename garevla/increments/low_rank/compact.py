"""Low-rank videos in little more memory than their frames take.

Keys and basis are linear in the normed frames. A text's dot product with either is the frame's
with the text that the map's transpose has taken, so that neither needs to be kept
(docs/derivation.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from garevla.increments.low_rank.factors import TextFactors, VideoFactors
from garevla.ops.eager.pairs import PairTerms, terms_of_products
from garevla.ops.products import linear


class RowMaps(NamedTuple):
    """The maps from frames to a video's rows: key = map · (frame/σ) + bias, and so the basis, with
    σ² = var(frame) + ε."""

    maps: Tensor  # (2·H, D, D) of the heads' keys, then of their part of the basis; rows centered
    biases: Tensor  # (2·H, D)
    tail: Tensor  # (2, D) the last two vectors of the basis, which all videos share
    eps: float


@dataclass(frozen=True)
class CompactFactors:
    """Of B videos, with H heads and F frames."""

    frames: Tensor  # (B, F, D)
    inverse_std: Tensor  # (B, F) 1/σ
    maps: RowMaps
    video: VideoFactors
    """All but ``rows`` and ``basis``, which are empty."""

    @classmethod
    def of(cls, frames: Tensor, video: VideoFactors, maps: RowMaps) -> CompactFactors:
        """Drop the rows of whole factors."""
        nothing = frames[:, :0]
        inverse_std = (frames.var(dim=-1, correction=0) + maps.eps).rsqrt()
        return cls(frames, inverse_std, maps, video._replace(rows=nothing, basis=nothing))

    def narrow(self, start: int, stop: int) -> CompactFactors:
        """Of videos ``start:stop``, as views."""
        return CompactFactors(
            self.frames[start:stop],
            self.inverse_std[start:stop],
            self.maps,
            self.video.narrow(start, stop),
        )

    def expand(self) -> VideoFactors:
        """The whole factors: two products with D × D weights for every frame."""
        heads = self.video.key_bias.shape[1]
        mapped = linear(
            self.frames * self.inverse_std.unsqueeze(-1),
            self.maps.maps.flatten(0, 1),
            self.maps.biases.flatten(),
        )
        keys, basis = mapped.unflatten(2, (2, heads, -1)).permute(2, 0, 3, 1, 4).flatten(2, 3)
        basis = torch.cat([basis, self.maps.tail.expand(len(basis), -1, -1)], dim=1)
        return self.video._replace(rows=torch.cat([keys, self.frames, basis], dim=1), basis=basis)

    def terms(self, text: TextFactors, pool_temperature: float) -> PairTerms:
        """All pairs, with the maps on the texts' side."""
        heads = self.video.key_bias.shape[1]
        features, maps = text.features, self.maps
        key_texts, basis_texts = (features @ maps.maps).split(heads)
        texts = torch.cat([key_texts, features.unsqueeze(0), basis_texts])  # (2·H + 1, A, D)
        products = linear(self.frames, texts.flatten(0, 1)).unflatten(2, texts.shape[:2])
        keys, plain, basis = products.permute(0, 2, 1, 3).split([heads, 1, heads], dim=1)
        scale = self.inverse_std[:, None, :, None]
        key_bias, basis_bias = (maps.biases @ features.T).unsqueeze(1).split(heads)
        tail = (maps.tail @ features.T).expand(len(keys), -1, -1)
        return terms_of_products(
            torch.addcmul(key_bias, keys, scale).flatten(1, 2),
            plain.squeeze(1),
            torch.cat([torch.addcmul(basis_bias, basis, scale).flatten(1, 2), tail], dim=1),
            text,
            self.video,
            pool_temperature,
        )
