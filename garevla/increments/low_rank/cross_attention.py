"""ψ: the network that computes a pair's increment from its semantic gap (GARE, NeurIPS 2025)."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from garevla.increments.low_rank.factors import IncrementFactors, centre, gram

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


class CrossAttentionPsi(nn.Module):
    """Published ψ: one cross-attention layer from a pair's gap to its video's frames.

    With g_ij = mean frame of video j − text i, x = LN1(g), C = LN1(frames)::

        o = LN2(out_proj(attention(query x, keys C, values C)))
        Δ = mean_proj(LN3(o + dropout(linear1(o))))

    The module never evaluates this per pair: it hands out factors of each video from which every
    Δ_ij follows exactly (docs/derivation.md). Parameter names are those of published checkpoints.

    Args:
        dim: D, the feature dimension.
        num_heads: attention heads; must divide ``dim``. Published: 1.
        dropout: probability, applied in training mode only. Published: 0.3.
        dropout_mode: ``"video"`` draws one mask per video, shared by all texts, which keeps the
            factored form. The published mask per pair (``"pair"``) is not available yet.

    Raises:
        ValueError: sizes that do not fit, dropout outside [0, 1), unknown ``dropout_mode``.
        NotImplementedError: ``dropout_mode="pair"``.
    """

    def __init__(
        self,
        dim: int = 512,
        num_heads: int = 1,
        dropout: float = 0.0,
        *,
        dropout_mode: Literal["video", "pair"] = "video",
    ) -> None:
        super().__init__()
        if dim < 1 or num_heads < 1 or dim % num_heads:
            raise ValueError(f"num_heads must divide dim, got dim={dim}, num_heads={num_heads}")
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f"dropout must be in [0, 1), got {dropout}")
        if dropout_mode == "pair":
            raise NotImplementedError(
                "dropout_mode='pair' (a mask per text-video pair) has no low-rank factors and is "
                "not available yet; use dropout_mode='video' (a mask per video)"
            )
        if dropout_mode != "video":
            raise ValueError(f"dropout_mode must be 'video' or 'pair', got {dropout_mode!r}")
        self.dim = dim
        self.num_heads = num_heads
        self.dropout = dropout
        self.layers = nn.ModuleList([_CrossAttentionLayer(dim)])
        self.mean_proj = nn.Linear(dim, dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Published initialisation: weights N(0, 0.02²), biases 0, LayerNorms the identity."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.LayerNorm):
                module.reset_parameters()

    def extra_repr(self) -> str:
        return f"dim={self.dim}, num_heads={self.num_heads}, dropout={self.dropout}"

    def forward(self, frame_features: Tensor) -> IncrementFactors:
        """Factors of every increment of these videos.

        Args:
            frame_features: (B, F, D), float32 or float64, finite everywhere; what padded frames
                hold does not matter, since the pair operation gives them weight 0.

        Returns:
            The :class:`IncrementFactors` in the dtype of ``frame_features``.
        """
        batch, frames, dim = frame_features.shape
        heads, head_dim = self.num_heads, dim // self.num_heads
        layer = self.layers[0]
        attention = layer.cross_attn

        def parameter(value: Tensor, *shape: int) -> Tensor:
            return value.to(frame_features.dtype).view(shape or value.shape)

        def map_frames(weight: Tensor, bias: Tensor) -> Tensor:
            """Apply maps (H, D, D) with biases (H, D) to every frame: (B, H·F, D)."""
            mapped = F.linear(normed, weight.flatten(0, 1), bias.flatten())
            return mapped.view(batch, frames, heads, dim).transpose(1, 2).flatten(1, 2)

        norm1, norm2, norm3 = layer.layer_norm1, layer.layer_norm2, layer.layer_norm3
        scale1, shift1 = parameter(norm1.weight), parameter(norm1.bias)
        scale2, shift2 = parameter(norm2.weight), parameter(norm2.bias)
        scale3, shift3 = parameter(norm3.weight), parameter(norm3.bias)
        normed = F.layer_norm(frame_features, (dim,), scale1, shift1, norm1.eps)

        # Keys, values and LN3's inputs are linear in the normed frames: adjacent weight matrices
        # are multiplied first, and LayerNorms' scales and centring taken into them.
        query = parameter(attention.q_proj.weight, heads, head_dim, dim) / math.sqrt(head_dim)
        query_bias = parameter(attention.q_proj.bias, heads, head_dim) / math.sqrt(head_dim)
        key = parameter(attention.k_proj.weight, heads, head_dim, dim)
        key_bias = parameter(attention.k_proj.bias, heads, head_dim)
        value = parameter(attention.v_proj.weight, heads, head_dim, dim)
        value_bias = parameter(attention.v_proj.bias, heads, head_dim)
        out = parameter(attention.out_proj.weight, dim, heads, head_dim).transpose(0, 1)
        out_bias = parameter(attention.out_proj.bias)
        hidden_weight = parameter(layer.linear1.weight)

        # The query side, x -> Wq x + bq, is moved onto the keys.
        query_scaled = centre(query * scale1)  # (H, D / H, D)
        keys = map_frames(query_scaled.mT @ key, (key_bias.unsqueeze(1) @ query_scaled).squeeze(1))
        query_shift = (query @ shift1 + query_bias).unsqueeze(1)  # (H, 1, D / H)
        logit_bias = F.linear(normed, (query_shift @ key).squeeze(1)).transpose(1, 2)
        logit_bias = logit_bias + (query_shift @ key_bias.unsqueeze(2)).squeeze(2)

        # Values after out_proj; each head takes its share of the output bias.
        value_map = out @ value  # (H, D, D)
        value_shift = (out @ value_bias.unsqueeze(2)).squeeze(2) + out_bias / heads
        value_map = value_map - value_map.mean(dim=1, keepdim=True)
        value_shift = centre(value_shift)
        values = map_frames(value_map, value_shift)

        # LN3's input: the frames' share (scaled by LN2's r2) and a share of no frame.
        hidden_scaled = hidden_weight * scale2
        constant = F.linear(shift2, hidden_weight, parameter(layer.linear1.bias))
        if self.training and self.dropout > 0.0:
            mask = self._dropout_mask(batch, frame_features)
            hidden = map_frames(hidden_scaled @ value_map, value_shift @ hidden_scaled.mT)
            hidden = centre(torch.addcmul(values * scale2, hidden, mask))
            constant = centre(shift2 + constant * mask)
        else:
            hidden_scaled = hidden_scaled + torch.diag(scale2)
            hidden_scaled = hidden_scaled - hidden_scaled.mean(dim=0)
            hidden = map_frames(hidden_scaled @ value_map, value_shift @ hidden_scaled.mT)
            constant = centre(shift2 + constant).expand(batch, 1, dim)
        hidden_constant = hidden @ constant.mT
        hidden_gram = torch.cat(
            [
                torch.cat([gram(hidden), hidden_constant], dim=2),
                torch.cat([hidden_constant.mT, constant @ constant.mT], dim=2),
            ],
            dim=1,
        )

        mean_weight = parameter(self.mean_proj.weight)
        mean_scaled = mean_weight * scale3
        last = F.linear(shift3, mean_weight, parameter(self.mean_proj.bias))
        basis = torch.cat(
            [
                F.linear(hidden, mean_scaled),
                F.linear(constant, mean_scaled),
                last.expand(batch, 1, dim),
            ],
            dim=1,
        )
        return IncrementFactors(
            keys=keys,
            key_bias=logit_bias,
            value_gram=gram(values) / dim,
            hidden_gram=hidden_gram / dim,
            basis=basis,
            layer_norm_eps=(norm1.eps, norm2.eps, norm3.eps),
        )

    def _dropout_mask(self, batch: int, like: Tensor) -> Tensor:
        """(B, 1, D) inverted-dropout mask of each video."""
        return F.dropout(like.new_ones(batch, 1, self.dim), self.dropout)

    def load_official_state_dict(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load ψ's parameters out of a published GARE checkpoint.

        Accepts a whole model's state dict (keys ``psi.*``, ``agent.psi.*``, with or without
        ``module.``) or ψ's own. Parameters that the published forward pass never uses are
        ignored, with a note in the log; a checkpoint of several layers contributes its last one,
        the only one whose output the published code keeps.

        Raises:
            KeyError: parameters of ψ are missing.
            ValueError: a parameter has another shape than this module's.
        """
        found = {_strip_prefix(name): value for name, value in state_dict.items()}
        found = {name: value for name, value in found.items() if name is not None}
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
            raise KeyError(f"published checkpoint lacks psi parameters: {', '.join(missing)}")
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


def _strip_prefix(name: str) -> str | None:
    """A parameter's name inside ψ, or None where it belongs to another module."""
    name = name.removeprefix("module.").removeprefix("agent.")
    if name.startswith("psi."):
        return name.removeprefix("psi.")
    return name if name.startswith(("layers.", "mean_proj.", "log_std_proj.")) else None
