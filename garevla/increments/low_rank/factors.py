"""Per-text and per-video quantities from which every pair's score follows.

A pair's increment is a combination of K = heads·F + 2 vectors of its video alone,
Δ_ij = Σ_k c_ijk E_jk, and everything the score needs of ψ is a dot product with the text or a
small Gram matrix of the video (docs/derivation.md). Plain PyTorch: autograd carries the gradients
on to ψ's weights, the frames and the texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor


class IncrementFactors(NamedTuple):
    """What an attention increment network gives away of itself, for B videos.

    H heads, F frames, K = H·F + 2. "Centered" means minus the mean over the D features.
    """

    keys: Tensor  # (B, H·F, D) centered key of each head and frame, seen from the gap's side
    key_bias: Tensor  # (B, H, F) part of the attention logit that no text changes
    value_gram: Tensor  # (B, H·F, H·F) Gram matrix of the centered attention values, over D
    hidden_gram: Tensor  # (B, H·F+1, H·F+1) Gram matrix of the centered LN3 inputs, over D
    basis: Tensor  # (B, K, D) the vectors E_jk
    layer_norm_eps: tuple[float, float, float]  # of the gap's, the attention's, the last LayerNorm


class VideoFactors(NamedTuple):
    """All per-video quantities of the pair operation (symbols as in docs/derivation.md)."""

    rows: Tensor  # (B, R, D) keys, frames, basis: multiplied with the texts in one product
    basis: Tensor  # (B, K, D) the vectors E_jk
    frame_mask: Tensor  # (B, F) bool
    key_offset: Tensor  # (B, H, F) v̄·κ
    key_bias: Tensor  # (B, H, F)
    mean_frame: Tensor  # (B, D) v̄, the mean of the valid frames, centered
    value_gram: Tensor  # (B, H·F, H·F)
    hidden_gram: Tensor  # (B, H·F+1, H·F+1)
    basis_gram: Tensor  # (B, K, K)
    frame_gram: Tensor  # (B, F, F)
    basis_frame: Tensor  # (B, K, F) dot products of basis and frames
    layer_norm_eps: tuple[float, float, float]

    @property
    def num_videos(self) -> int:
        return self.frame_mask.shape[0]

    @property
    def attention(self) -> int:
        """H·F, attention weights of a pair."""
        return self.key_bias.shape[1] * self.key_bias.shape[2]

    def operator_arguments(self) -> list[Tensor]:
        """The tensors of PAIR_FACTORS."""
        return [getattr(self, name) for name in PAIR_FACTORS]

    def narrow(self, start: int, stop: int) -> VideoFactors:
        """The factors of videos ``start:stop``, as views."""
        *tensors, eps = self
        fields: list[Any] = [*(tensor[start:stop] for tensor in tensors), eps]
        return VideoFactors(*fields)


PAIR_FACTORS = {
    "rows": "BRD",
    "frame_mask": "BF",
    "key_offset": "BHF",
    "key_bias": "BHF",
    "mean_frame": "BD",
    "value_gram": "BNN",
    "hidden_gram": "BMM",
    "basis_gram": "BKK",
    "frame_gram": "BFF",
    "basis_frame": "BKF",
}
"""The tensors that compiled pair operators take, in this order, and their shapes in the letters of
:func:`factor_sizes`. ``basis`` is not among them: its vectors are in ``rows``."""


def factor_sizes(key_bias_shape: Sequence[int], dim: int) -> dict[str, int]:
    """The sizes that PAIR_FACTORS's letters stand for.

    Args:
        key_bias_shape: (B, H, F).
        dim: D.
    """
    videos, heads, frames = key_bias_shape
    attention = heads * frames
    return {
        "B": videos,
        "D": dim,
        "F": frames,
        "H": heads,
        "N": attention,  # attention weights
        "M": attention + 1,  # and LN3's constant
        "K": attention + 2,  # and the increment's: vectors of the basis
        "R": attention + frames + attention + 2,  # keys, frames, basis
    }


class TextFactors(NamedTuple):
    """Per-text quantities of the pair operation."""

    features: Tensor  # (A, D)
    centered: Tensor  # (A, D) minus the mean over D
    squared_norm: Tensor  # (A,)


def center(x: Tensor) -> Tensor:
    """Subtract the mean over the last axis."""
    return x - x.mean(dim=-1, keepdim=True)


def mean_of_valid(frame_features: Tensor, frame_mask: Tensor) -> Tensor:
    """v̄ (B, D), the mean of the valid frames; arguments as in :func:`video_factors`."""
    weights = frame_mask.to(frame_features.dtype)
    weights = weights / weights.sum(dim=1, keepdim=True)
    return (weights.unsqueeze(1) @ frame_features).squeeze(1)


class _Gram(torch.autograd.Function):
    """x xᵀ. Autograd, which does not see that both are one, takes a product more in backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x @ x.mT

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return (grad_output + grad_output.mT) @ x


def gram(x: Tensor) -> Tensor:
    """Gram matrices (…, N, N) of the rows of x (…, N, D)."""
    return _Gram.apply(x)


def text_factors(text_features: Tensor) -> TextFactors:
    """Per-text quantities of text features (A, D)."""
    return TextFactors(
        features=text_features,
        centered=center(text_features),
        squared_norm=text_features.square().sum(dim=-1),
    )


def video_factors(
    frame_features: Tensor,
    frame_mask: Tensor,
    increment: IncrementFactors,
    pooled_frames: Tensor | None = None,
    mean_frame: Tensor | None = None,
) -> VideoFactors:
    """Join an increment network's factors with the frames' own.

    Args:
        frame_features: (B, F, D) floating point, zeros where ``frame_mask`` is false.
        frame_mask: (B, F) bool, at least one valid frame per video.
        increment: the network's factors for the same videos.
        pooled_frames: (B, F, D), the frames that texts pool, where they are not those of the gap.
        mean_frame: (B, D), which the gap is taken from, where it is not the frames' mean.
    """
    if pooled_frames is None:
        pooled_frames = frame_features
    heads, frames = increment.key_bias.shape[1:]
    if mean_frame is None:
        mean_frame = mean_of_valid(frame_features, frame_mask)
    key_offset = (increment.keys @ mean_frame.unsqueeze(-1)).view(-1, heads, frames)
    basis = increment.basis
    return VideoFactors(
        rows=torch.cat([increment.keys, pooled_frames, basis], dim=1),
        basis=basis,
        frame_mask=frame_mask,
        key_offset=key_offset,
        key_bias=increment.key_bias,
        mean_frame=center(mean_frame),
        value_gram=increment.value_gram,
        hidden_gram=increment.hidden_gram,
        basis_gram=gram(basis),
        frame_gram=gram(pooled_frames),
        basis_frame=basis @ pooled_frames.mT,
        layer_norm_eps=increment.layer_norm_eps,
    )


def exchanged_factors(
    text_features: Tensor, word_features: Tensor, word_mask: Tensor, increment: IncrementFactors
) -> VideoFactors:
    """Factors of texts in the place of videos, for increments of the videos.

    Args:
        text_features: (A, D), what every video is compared with: its pooling is of equal vectors.
        word_features: (A, W, D) floating point, zeros where ``word_mask`` is false.
        word_mask: (A, W) bool, at least one word per text.
        increment: the network's factors for the words.
    """
    return video_factors(
        word_features,
        word_mask,
        # The pair operation forms text − mean frame; the gap is the opposite.
        increment._replace(keys=-increment.keys),
        pooled_frames=text_features.unsqueeze(1).expand_as(word_features),
        mean_frame=text_features,
    )
