"""What is said where a second derivative is asked for."""

from __future__ import annotations

import torch


def first_derivative_only(what: str) -> None:
    """Raise RuntimeError in a backward pass that is recorded (``create_graph=True``).

    ``torch.autograd.function.once_differentiable`` would notice too late, or never, where the
    gradient is a constant beside what comes in.
    """
    if torch.is_grad_enabled():
        raise RuntimeError(
            f"{what} has no second derivatives (create_graph=True). Only the pair operations of "
            "backend 'eager' have, without dropout per pair or a hidden layer per pair; GareLoss "
            "consists of them with lambda_direction=0"
        )
