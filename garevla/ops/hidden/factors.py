"""What the hidden-layer operations are given: factors of texts and videos, and constants.

Δ_ij = W y_ij + b, where the hidden vector y_ij of a pair exists for a tile of pairs at a time. Two
kinds of layers make it (docs/derivation.md):

- ``"gap"``: y = act(r (a_j − b_i) + c), r the inverse standard deviation of the pair's gap;
- ``"attention"``: y = LN(Σ_k w_k X_jk + β + m ⊙ (Σ_k w_k Y_jk + b₁)), w the pair's attention
  weights after LN2, m its dropout mask.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

_COMMON = {
    "text": "AD",
    "frames": "BFD",
    "frame_mask": "BF",
    "frame_gram": "BFF",
    "mean_frame": "BD",
    "weight": "DH",
    "bias": "D",
}
FACTORS = {
    "gap": {**_COMMON, "text_hidden": "AH", "video_hidden": "BH", "shift": "H"},
    "attention": {
        **_COMMON,
        "key_bias": "BNF",
        "key_offset": "BNF",
        "keys": "BKD",
        "value_gram": "BKK",
        "values": "BKS",
        "shift": "S",
    },
}
"""By kind of layer: the tensors that the operators take, in this order, and their shapes. A texts,
B videos, F frames, D features, H hidden units, N heads, K = N·F attention weights, S = 2·H: what
the mask leaves alone, then what it multiplies. ``mean_frame`` is centered over D."""

NO_GRADIENT = ("frame_mask",)
"""Factors without a gradient."""

ACTIVATIONS = ("gelu", "gelu_tanh", "silu", "relu", "quick_gelu")


@dataclass(frozen=True)
class HiddenLayer:
    """The constants of a layer."""

    kind: str
    """A key of FACTORS."""
    activation: str
    """One of ACTIVATIONS; empty for the kind that has none."""
    layer_norm_eps: tuple[float, ...]
    """Of the gap's LayerNorm; for ``"attention"`` the attention's and the last one's, too."""
    dropout: float = 0.0
    """Probability that a hidden number (``"gap"``) or linear1's output (``"attention"``) of a pair
    is dropped."""


@dataclass(frozen=True)
class HiddenPairs:
    """All pairs of A texts and B videos."""

    layer: HiddenLayer
    factors: dict[str, Tensor]
    """By FACTORS's names."""
    seed: Tensor | None
    """int64 on the CPU, of the dropout masks: 0-d, or (3,) with the indices that the first text and
    the first video have where other processes hold more of them; None without dropout."""

    @property
    def text(self) -> Tensor:
        return self.factors["text"]

    def tensors(self) -> list[Tensor]:
        """The factors in the order of FACTORS."""
        return [self.factors[name] for name in FACTORS[self.layer.kind]]


def seed_and_origin(seed: Tensor) -> tuple[Tensor, Tensor | int, Tensor | int]:
    """The seed, and the indices of the first text and the first video."""
    return (seed, 0, 0) if seed.dim() == 0 else (seed[0], seed[1], seed[2])


def axis(kind: str, name: str) -> str:
    """What a factor's first axis counts: ``"A"`` texts, ``"B"`` videos, else neither."""
    return FACTORS[kind][name][0]
