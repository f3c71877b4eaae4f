"""Weights of layers that are never called."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def weights_of(owner: nn.Module, name: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Weight and bias of a network's linear layer or LayerNorm, to compute with instead of it.

    Args:
        owner: of the layer.
        name: the attribute.
        dtype: of the result.

    Raises:
        TypeError: another layer took its place, whose own parameters would never be used: an
            adapter such as LoRA's, or a quantized layer.
    """
    layer = getattr(owner, name)
    if type(layer).forward not in (nn.Linear.forward, nn.LayerNorm.forward):
        kind = type(layer)
        raise TypeError(
            f"psi's layer {name!r} is now a {kind.__module__}.{kind.__qualname__}: psi computes "
            "with the weights of its layers and never calls them, so that this one would not be "
            "trained. Keep adapters out of psi, which is small enough to be trained whole; with "
            "peft: exclude_modules=r'.*psi.*', modules_to_save=['psi']. What is trained already "
            "can be merged: merge_and_unload()"
        )
    return layer.weight.to(dtype), layer.bias.to(dtype)
