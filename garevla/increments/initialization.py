"""How long the increments of a network ψ are before it is trained."""

from __future__ import annotations

from typing import get_args

import torch
from torch import nn

from garevla.increments.settings import PsiInit


def check_init(init: str) -> None:
    """Raise ValueError unless it is one of :data:`garevla.increments.settings.PsiInit`."""
    if init not in get_args(PsiInit):
        raise ValueError(f"init must be one of {get_args(PsiInit)}, got {init!r}")


@torch.no_grad()
def reset_last(layer: nn.Linear, init: PsiInit) -> None:
    """Reset the layer whose output is the increment: weights N(0, 0.02²), or a hundredth of that.

    ``"small"`` is not 0: an increment of length 0 has no direction, and the regularizers have no
    gradient there, or an infinite one.
    """
    nn.init.normal_(layer.weight, std=0.02)
    nn.init.zeros_(layer.bias)
    if init == "small":
        layer.weight.mul_(0.01)
