"""ψ as a multilayer perceptron on the semantic gap alone."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from garevla.increments.base import IncrementNetwork
from garevla.increments.hidden.videos import HiddenVideos
from garevla.increments.initialization import check_init, reset_last
from garevla.increments.layers import weights_of
from garevla.increments.low_rank.factors import center, gram, mean_of_valid
from garevla.increments.settings import PsiInit
from garevla.ops.dropout import draw_seed
from garevla.ops.hidden.factors import ACTIVATIONS, HiddenLayer


class GapMLPPsi(IncrementNetwork):
    """ψ with one hidden layer, Δ_ij = linear2(dropout(act(linear1(LN(v̄_j − t_i))))).

    The first layer is linear in texts and videos up to LayerNorm's scale, so that it is evaluated
    for each of them once; activation and second layer are evaluated for every pair, a tile of pairs
    at a time (docs/derivation.md).

    Args:
        dim: D, the feature dimension.
        hidden_dim: H, hidden units.
        activation: ``"gelu"``, ``"gelu_tanh"``, ``"silu"``, ``"relu"`` or ``"quick_gelu"``
            (x·sigmoid(1.702 x)).
        dropout: probability, in training mode only, of each pair's hidden units by themselves.
        init: of the second layer's weights. ``"published"``: N(0, 0.02²), as in
            :class:`garevla.CrossAttentionPsi`; ``"small"``: a hundredth of that, so that the head
            starts from the similarity without increments.

    Raises:
        ValueError: sizes below 1, an unknown activation or init, dropout outside [0, 1).
    """

    def __init__(
        self,
        dim: int = 512,
        hidden_dim: int = 512,
        activation: str = "gelu",
        dropout: float = 0.0,
        init: PsiInit = "published",
    ) -> None:
        super().__init__()
        if dim < 1 or hidden_dim < 1:
            raise ValueError(f"sizes must be at least 1, got dim={dim}, hidden_dim={hidden_dim}")
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {ACTIVATIONS}, got {activation!r}")
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f"dropout must be in [0, 1), got {dropout}")
        self.dim, self.hidden_dim = dim, hidden_dim
        check_init(init)
        self.activation, self.dropout, self.init = activation, dropout, init
        self.norm = nn.LayerNorm(dim)
        self.linear1 = nn.Linear(dim, hidden_dim)
        self.linear2 = nn.Linear(hidden_dim, dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """PyTorch's initialization; the second layer's weights by ``init``, its bias 0."""
        self.norm.reset_parameters()
        self.linear1.reset_parameters()
        reset_last(self.linear2, self.init)

    def extra_repr(self) -> str:
        return (
            f"dim={self.dim}, hidden_dim={self.hidden_dim}, activation={self.activation!r}, "
            f"dropout={self.dropout}, init={self.init!r}"
        )

    @property
    def draws_seed(self) -> bool:
        return self.training and self.dropout > 0.0

    def encode_compact(self, frame_features: Tensor, frame_mask: Tensor) -> HiddenVideos:
        return self.encode_videos(frame_features, frame_mask)

    def encode_videos(self, frame_features: Tensor, frame_mask: Tensor) -> HiddenVideos:
        return self._encode(frame_features, frame_mask, exchanged=False)

    def encode_texts(
        self, text_features: Tensor, word_features: Tensor, word_mask: Tensor
    ) -> HiddenVideos:
        """As :meth:`IncrementNetwork.encode_texts`; words have no part in these increments."""
        return self._encode(
            text_features.unsqueeze(1), torch.ones_like(word_mask[:, :1]), exchanged=True
        )

    def _encode(
        self, frame_features: Tensor, frame_mask: Tensor, *, exchanged: bool
    ) -> HiddenVideos:
        dtype = frame_features.dtype
        scale, shift = weights_of(self, "norm", dtype)
        weight, bias = weights_of(self, "linear1", dtype)
        out, out_bias = weights_of(self, "linear2", dtype)
        # The operations form mean frame − text; of exchanged ones the gap is the opposite.
        text_map = weight * (-scale if exchanged else scale)
        mean_frame = center(mean_of_valid(frame_features, frame_mask))
        dropped = self.draws_seed
        return HiddenVideos(
            layer=HiddenLayer(
                "gap", self.activation, (self.norm.eps,), self.dropout if dropped else 0.0
            ),
            factors={
                "frames": frame_features,
                "frame_mask": frame_mask,
                "frame_gram": gram(frame_features),
                "mean_frame": mean_frame,
                "weight": out,
                "bias": out_bias,
                "video_hidden": F.linear(mean_frame, text_map),
                "shift": F.linear(shift, weight, bias),
            },
            text_map=text_map,
            seed=draw_seed() if dropped else None,
        )
