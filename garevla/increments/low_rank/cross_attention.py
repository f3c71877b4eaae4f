"""ψ: the network that computes a pair's increment from its semantic gap (GARE, NeurIPS 2025)."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any, NamedTuple, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from garevla.increments.base import EncodedVideos
from garevla.increments.hidden.videos import HiddenVideos
from garevla.increments.initialization import check_init, reset_last
from garevla.increments.layers import weights_of
from garevla.increments.low_rank.compact import RowMaps
from garevla.increments.low_rank.factors import (
    IncrementFactors,
    center,
    gram,
    mean_of_valid,
    video_factors,
)
from garevla.increments.low_rank.frame_places import FramePlaces
from garevla.increments.low_rank.videos import LowRankNetwork, LowRankVideos
from garevla.increments.settings import DropoutMode, PsiInit
from garevla.ops.dropout import draw_seed
from garevla.ops.hidden.factors import HiddenLayer
from garevla.ops.products import batched, linear
from garevla.utils.padding import Padding, check_padding
from garevla.utils.weights import bare_weights, summary

logger = logging.getLogger(__name__)

_DEAD_PARAMETERS = ("linear2.", "mlp.", "log_std_proj.")


class _CrossAttention(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.q_proj = nn.Linear(dim, dim)
        self.k_proj = nn.Linear(dim, dim)
        self.v_proj = nn.Linear(dim, dim)
        self.out_proj = nn.Linear(dim, dim)


class _CrossAttentionLayer(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.cross_attn = _CrossAttention(dim)
        self.linear1 = nn.Linear(dim, dim)
        self.layer_norm1 = nn.LayerNorm(dim)
        self.layer_norm2 = nn.LayerNorm(dim)
        self.layer_norm3 = nn.LayerNorm(dim)


class CrossAttentionPsi(LowRankNetwork):
    """Published ψ: one cross-attention layer from a pair's gap to its video's frames.

    With g_ij = mean frame of video j − text i, x = LN1(g), C = LN1(frames)::

        o = LN2(out_proj(attention(query x, keys C, values C)))
        Δ = mean_proj(LN3(o + dropout(linear1(o))))

    The module never evaluates this per pair: it hands out factors of each video from which every
    Δ_ij follows exactly (docs/derivation.md). Parameter names are those of published checkpoints.

    Args:
        dim: D, the feature dimension.
        num_heads: attention heads; must divide ``dim``. Published: 1.
        dropout: probability, in training mode only. Published: 0.3.
        dropout_mode: ``"video"``: one mask per video, shared by all texts, which keeps the low-rank
            form. ``"pair"``, as published: a mask per pair, for which every pair's hidden vector is
            evaluated, a tile of pairs at a time (:func:`garevla.dropout_seed`).
        init: ``"published"``: fresh increments are 0.02·D long, 10.2 at D = 512, whatever the
            features: about as long as the features that CLIP gives, before they are normalized.
            ``"small"``: a hundredth of that, so that the head starts from the similarity
            without increments.
        padding: ``"ignored"``: padded frames take no part. ``"published"``: as in the published
            code, they count in the mean frame and in the attention, and not in the pooling; for
            the published scores of short videos, with padding encoded as there
            (``ClipEncoder(padding="published")``).

    Raises:
        ValueError: sizes that do not fit, dropout outside [0, 1), an unknown mode, init or
            padding.
    """

    def __init__(
        self,
        dim: int = 512,
        num_heads: int = 1,
        dropout: float = 0.0,
        dropout_mode: DropoutMode = "video",
        init: PsiInit = "published",
        padding: Padding = "ignored",
    ) -> None:
        super().__init__()
        if dim < 1 or num_heads < 1 or dim % num_heads:
            raise ValueError(f"num_heads must divide dim, got dim={dim}, num_heads={num_heads}")
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f"dropout must be in [0, 1), got {dropout}")
        self.dim = dim
        self.num_heads = num_heads
        if dropout_mode not in get_args(DropoutMode):
            raise ValueError(
                f"dropout_mode must be one of {get_args(DropoutMode)}, got {dropout_mode!r}"
            )
        check_init(init)
        self.dropout = dropout
        self.dropout_mode = dropout_mode
        self.init = init
        check_padding(padding)
        self.padding = padding
        self.layers = nn.ModuleList([_CrossAttentionLayer(dim)])
        self.mean_proj = nn.Linear(dim, dim)
        self.reset_parameters()

    @property
    def layer(self) -> _CrossAttentionLayer:
        """The one layer; checkpoints have a list of them."""
        return cast(_CrossAttentionLayer, self.layers[0])

    def reset_parameters(self) -> None:
        """Published initialization: weights N(0, 0.02²), biases 0, LayerNorms the identity; the
        last map's weights by ``init``."""
        for module in self.layers.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.LayerNorm):
                module.reset_parameters()
        reset_last(self.mean_proj, self.init)

    def extra_repr(self) -> str:
        return (
            f"dim={self.dim}, num_heads={self.num_heads}, dropout={self.dropout}, "
            f"dropout_mode={self.dropout_mode!r}, init={self.init!r}, padding={self.padding!r}"
        )

    @property
    def reads_padding(self) -> bool:
        return self.padding == "published"

    @property
    def draws_seed(self) -> bool:
        return self._drops() and self.dropout_mode == "pair"

    def encode_videos(self, frame_features: Tensor, frame_mask: Tensor) -> EncodedVideos:
        pooled_frames = frame_features
        if self.reads_padding:
            # Published weights are 0 behind the pooling's softmax. So are frames that are 0: they
            # shorten the pooled vector, of which the direction alone counts.
            pooled_frames = frame_features.masked_fill(~frame_mask.unsqueeze(-1), 0.0)
            frame_mask = torch.ones_like(frame_mask)
        if self.draws_seed:
            return self._hidden_videos(frame_features, frame_mask, pooled_frames)
        increment = self(frame_features, frame_mask)
        return LowRankVideos(video_factors(frame_features, frame_mask, increment, pooled_frames))

    def encode_texts(
        self, text_features: Tensor, word_features: Tensor, word_mask: Tensor
    ) -> EncodedVideos:
        """As :meth:`IncrementNetwork.encode_texts`."""
        if self.reads_padding:
            raise ValueError(
                "padding='published' is for increments of texts: no published code corrects videos"
            )
        if not self.draws_seed:
            return super().encode_texts(text_features, word_features, word_mask)
        pooled = text_features.unsqueeze(1).expand_as(word_features)
        return self._hidden_videos(word_features, word_mask, pooled, text_features)

    def _drops(self) -> bool:
        return self.training and self.dropout > 0.0

    def forward(self, frame_features: Tensor, frame_mask: Tensor) -> IncrementFactors:
        """As :meth:`LowRankNetwork.forward`."""
        dtype, num_videos = frame_features.dtype, len(frame_features)
        norm1, norm2, norm3 = self._layer_norms(dtype)
        attention = self._attention_maps(dtype)
        places = FramePlaces.of(frame_mask)
        normed = self._normed(places.rows(frame_features), norm1)

        keys, logit_bias = _keys(normed, attention, norm1)
        # LN3's input in terms of the attention's values: W1 and the residual after LN2.
        weight, bias = weights_of(self.layer, "linear1", dtype)
        values = _value_maps(attention).of(normed)
        scaled = weight * norm2.scale
        constant = F.linear(norm2.shift, weight, bias)
        if self._drops():
            mask = self._dropout_mask(num_videos, frame_features)
            plain, dropped = values * norm2.scale, linear(values, scaled)
            hidden = center(torch.addcmul(plain, dropped, places.of_videos(mask)))
            constant = center(norm2.shift + constant * mask)
        else:
            scaled = _residual(scaled, norm2)
            hidden = linear(values, scaled)
            constant = center(norm2.shift + constant).expand(num_videos, 1, self.dim)
        scaled, last = self._last_map(norm3)
        basis = places.by_head(linear(hidden, scaled))
        last = last.expand(num_videos, 1, self.dim)
        return IncrementFactors(
            keys=places.by_head(keys),
            key_bias=places.videos(logit_bias).mT,
            value_gram=gram(places.by_head(values)) / self.dim,
            hidden_gram=_gram_of_two(places.by_head(hidden), constant) / self.dim,
            basis=torch.cat([basis, F.linear(constant, scaled), last], dim=1),
            layer_norm_eps=(norm1.eps, norm2.eps, norm3.eps),
        )

    def row_maps(self, dtype: torch.dtype) -> RowMaps:
        """As :meth:`LowRankNetwork.row_maps`."""
        if self._drops():
            raise ValueError(
                "with dropout every video has a map of its own: a compact form needs psi.eval()"
            )
        if self.reads_padding:
            raise ValueError(
                "with padding='published' texts pool other frames than psi sees: there is no "
                "compact form"
            )
        norm1, norm2, norm3 = self._layer_norms(dtype)
        attention = self._attention_maps(dtype)
        weight, bias = weights_of(self.layer, "linear1", dtype)
        constant = center(norm2.shift + F.linear(norm2.shift, weight, bias))
        values = _value_maps(attention).joined()
        hidden = _followed_by(_residual(weight * norm2.scale, norm2), *values)
        out, last = self._last_map(norm3)
        keys, basis = _key_maps(attention, norm1).joined(), _followed_by(out, *hidden)
        maps, biases = (torch.cat(parts) for parts in zip(keys, basis, strict=True))
        return RowMaps(
            maps=center(maps * norm1.scale),
            biases=biases + maps @ norm1.shift,
            tail=torch.stack([F.linear(constant, out), last]),
            eps=norm1.eps,
        )

    def _hidden_videos(
        self,
        frame_features: Tensor,
        frame_mask: Tensor,
        pooled_frames: Tensor,
        exchanged_text: Tensor | None = None,
    ) -> HiddenVideos:
        """The same network, up to a pair's input of LN3, which its mask decides.

        Args:
            exchanged_text: (B, D), texts in the place of videos; frames are then their words.
        """
        dtype = frame_features.dtype
        norm1, norm2, norm3 = self._layer_norms(dtype)
        attention = self._attention_maps(dtype)
        places = FramePlaces.of(frame_mask)
        normed = self._normed(places.rows(frame_features), norm1)
        normed_keys, logit_bias = _keys(normed, attention, norm1)
        keys, key_bias = places.by_head(normed_keys), places.videos(logit_bias).mT
        values = _value_maps(attention).of(normed)
        plain = values * norm2.scale
        weight, bias = weights_of(self.layer, "linear1", dtype)
        out, out_bias = self._last_map(norm3)
        if exchanged_text is None:
            mean_frame = mean_of_valid(frame_features, frame_mask)
        else:
            # As in exchanged_factors.
            mean_frame, keys = exchanged_text, -keys
        return HiddenVideos(
            layer=HiddenLayer("attention", "", (norm1.eps, norm2.eps, norm3.eps), self.dropout),
            factors={
                "frames": pooled_frames,
                "frame_mask": frame_mask,
                "frame_gram": gram(pooled_frames),
                "mean_frame": center(mean_frame),
                "weight": out,
                "bias": out_bias,
                "keys": keys,
                "key_offset": (keys @ mean_frame.unsqueeze(-1)).view_as(key_bias),
                "key_bias": key_bias,
                "value_gram": gram(places.by_head(values)) / self.dim,
                "values": places.by_head(torch.cat([plain, linear(plain, weight)], dim=2)),
                "shift": torch.cat([norm2.shift, F.linear(norm2.shift, weight, bias)]),
            },
            text_map=None,
            seed=draw_seed(),
        )

    def _normed(self, frames: Tensor, norm1: _LayerNorm) -> Tensor:
        return F.layer_norm(frames, (self.dim,), norm1.scale, norm1.shift, norm1.eps)

    def _layer_norms(self, dtype: torch.dtype) -> tuple[_LayerNorm, ...]:
        names = ("layer_norm1", "layer_norm2", "layer_norm3")
        return tuple(
            _LayerNorm(*weights_of(self.layer, name, dtype), getattr(self.layer, name).eps)
            for name in names
        )

    def _attention_maps(self, dtype: torch.dtype) -> _AttentionMaps:
        """The attention's weights by head; the query's over the root of its size."""
        dim, heads, head_dim = self.dim, self.num_heads, self.dim // self.num_heads
        attention = self.layer.cross_attn
        query, query_bias = weights_of(attention, "q_proj", dtype)
        key, key_bias = weights_of(attention, "k_proj", dtype)
        value, value_bias = weights_of(attention, "v_proj", dtype)
        out, out_bias = weights_of(attention, "out_proj", dtype)
        return _AttentionMaps(
            query=query.view(heads, head_dim, dim) / math.sqrt(head_dim),
            query_bias=query_bias.view(heads, head_dim) / math.sqrt(head_dim),
            key=key.view(heads, head_dim, dim),
            key_bias=key_bias.view(heads, head_dim),
            value=value.view(heads, head_dim, dim),
            value_bias=value_bias.view(heads, head_dim),
            out=out.view(dim, heads, head_dim).transpose(0, 1),
            out_bias=out_bias,
        )

    def _last_map(self, norm3: _LayerNorm) -> tuple[Tensor, Tensor]:
        """mean_proj after LN3's scale (D, D), and after its shift (D)."""
        weight, bias = weights_of(self, "mean_proj", norm3.scale.dtype)
        return weight * norm3.scale, F.linear(norm3.shift, weight, bias)

    def _dropout_mask(self, batch: int, like: Tensor) -> Tensor:
        """(B, 1, D) inverted-dropout mask of each video."""
        return F.dropout(like.new_ones(batch, 1, self.dim), self.dropout)

    def load_official_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load ψ's parameters out of a published GARE checkpoint.

        Accepts a whole model's state dict (keys ``psi.*``, ``agent.psi.*``) or ψ's own, wrapped as
        :func:`garevla.encoders.load_official` takes them. Parameters that the published forward
        pass never uses are ignored, with a note in the log; a checkpoint of several layers
        contributes its last one, the only one whose output the published code keeps.

        Raises:
            KeyError: parameters of ψ are missing.
            ValueError: a parameter has another shape than this module's; no weights at all.
        """
        weights = bare_weights(state_dict)
        found = {
            inner: value
            for name, value in weights.items()
            if (inner := _name_in_psi(name)) is not None
        }
        layers = [int(name.split(".")[1]) for name in found if name.startswith("layers.")]
        last = f"layers.{max(layers, default=0)}."
        selected = {
            name.replace(last, "layers.0.", 1): value
            for name, value in found.items()
            if name.startswith((last, "mean_proj."))
        }
        own = self.state_dict()
        missing = sorted(own.keys() - selected.keys())
        if missing:
            raise KeyError(
                f"published checkpoint lacks psi parameters: {', '.join(missing)}; weights found: "
                f"{summary(weights)}"
            )
        for name, value in own.items():
            if selected[name].shape != value.shape:
                raise ValueError(
                    f"psi.{name} has shape {tuple(selected[name].shape)} in the checkpoint, "
                    f"{tuple(value.shape)} here"
                )
        ignored = sorted(found.keys() - {name.replace("layers.0.", last, 1) for name in own})
        dead = [name for name in ignored if any(part in name for part in _DEAD_PARAMETERS)]
        if ignored:
            logger.info(
                "ignored %d parameters that the published forward pass never uses (%s)",
                len(ignored),
                ", ".join(dead or ignored),
            )
        self.load_state_dict({name: selected[name] for name in own})


class _LayerNorm(NamedTuple):
    scale: Tensor  # (D)
    shift: Tensor  # (D)
    eps: float


class _AttentionMaps(NamedTuple):
    """The attention's linear maps, E = D / H."""

    query: Tensor  # (H, E, D)
    query_bias: Tensor  # (H, E)
    key: Tensor  # (H, E, D)
    key_bias: Tensor  # (H, E)
    value: Tensor  # (H, E, D)
    value_bias: Tensor  # (H, E)
    out: Tensor  # (H, D, E)
    out_bias: Tensor  # (D)


class _TwoMaps(NamedTuple):
    """A map from D features to E of each head, then one back: second (first x + shift) + bias."""

    first: Tensor  # (H, E, D)
    shift: Tensor  # (H, E)
    second: Tensor  # (H, D, E)
    bias: Tensor | None  # (H, D)

    def joined(self) -> tuple[Tensor, Tensor]:
        """As one map (H, D, D) with its bias (H, D)."""
        bias = (self.second @ self.shift.unsqueeze(2)).squeeze(2)
        if self.bias is not None:
            bias = bias + self.bias
        return batched(self.second, self.first), bias

    def of(self, frames: Tensor) -> Tensor:
        """Of frames (N, D): (N, H, D)."""
        heads, head_dim, dim = self.first.shape
        # In multiply-adds: N·2·D² one after the other; joined N·H·D², and D³ to join them.
        if heads == 1 and len(frames) > dim:
            weight, bias = self.joined()
            return linear(frames, weight.flatten(0, 1), bias.flatten()).unflatten(1, (heads, dim))
        inner = linear(frames, self.first.flatten(0, 1), self.shift.flatten())
        inner = inner.unflatten(1, (heads, head_dim)).transpose(0, 1)
        mapped = batched(inner, self.second.mT).transpose(0, 1)
        return mapped if self.bias is None else mapped + self.bias


def _followed_by(weight: Tensor, maps: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """Maps (H, D, D) and biases (H, D), then a map (D, D): again (H, D, D) and (H, D)."""
    return batched(weight.expand_as(maps), maps), shift @ weight.mT


def _keys(normed: Tensor, maps: _AttentionMaps, norm1: _LayerNorm) -> tuple[Tensor, Tensor]:
    """Keys (N, H, D) seen from the gap's side, and the logits' part (N, H) of no text.

    The query side, x -> Wq x + bq of x = LN1(gap), is moved onto the keys.
    """
    shift = (maps.query @ norm1.shift + maps.query_bias).unsqueeze(1)  # (H, 1, E)
    logit_bias = F.linear(normed, (shift @ maps.key).squeeze(1))
    bias = (shift @ maps.key_bias.unsqueeze(2)).flatten()
    return _key_maps(maps, norm1).of(normed), logit_bias + bias


def _key_maps(maps: _AttentionMaps, norm1: _LayerNorm) -> _TwoMaps:
    """From normed frames to those keys, with LN1's scale and centering."""
    query = center(maps.query * norm1.scale)
    return _TwoMaps(maps.key, maps.key_bias, query.mT, bias=None)


def _value_maps(maps: _AttentionMaps) -> _TwoMaps:
    """From normed frames to the centered values after out_proj, whose bias the heads share: their
    weights add up to 1 each."""
    bias = center(maps.out_bias / len(maps.out)).expand(len(maps.out), -1)
    centered = maps.out - maps.out.mean(dim=1, keepdim=True)
    return _TwoMaps(maps.value, maps.value_bias, centered, bias)


def _residual(weight: Tensor, norm2: _LayerNorm) -> Tensor:
    """linear1's map (D, D) after LN2, and the residual beside it; its results centered."""
    weight = weight + torch.diag(norm2.scale)
    return weight - weight.mean(dim=0)


def _gram_of_two(hidden: Tensor, constant: Tensor) -> Tensor:
    """Gram matrix (B, N+1, N+1) of the rows of hidden (B, N, D) and constant (B, 1, D)."""
    mixed = hidden @ constant.mT
    upper = torch.cat([gram(hidden), mixed], dim=2)
    lower = torch.cat([mixed.mT, constant @ constant.mT], dim=2)
    return torch.cat([upper, lower], dim=1)


def _name_in_psi(name: str) -> str | None:
    """A parameter's name inside ψ, or None where it belongs to another module."""
    name = name.removeprefix("agent.")
    if name.startswith("psi."):
        return name.removeprefix("psi.")
    return name if name.startswith(("layers.", "mean_proj.", "log_std_proj.")) else None
