"""What is said where a derivative is asked for that there is not."""

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


def refuse_transforms() -> None:
    """Raise RuntimeError inside a transform of torch.func, whose tensors operators do not take."""
    if not torch.compiler.is_compiling() and torch._C._functorch.peek_interpreter_stack():
        raise RuntimeError(
            "garevla's functions do not run inside transforms of torch.func (grad, vjp, jvp, vmap "
            "and others), on any backend: take gradients with torch.autograd.grad or backward(). "
            "For other parameters, torch.func.functional_call outside a transform will do"
        )
