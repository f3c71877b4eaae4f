"""A target's results against eager's in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.conformance.error_model import check, expected, outcome, plain_errors
from tests.conformance.operations import OPERATIONS, Inputs, Size, inputs_of, leaves, outputs
from tests.conformance.targets import Target


def check_exact(target: Target, operation: str, size: Size) -> None:
    """In float64, to rounding; nothing is asked of a backend that refuses float64."""
    inputs, together = inputs_of(operation, size, device=target.device), target.interpreted
    if target.refusal(operation, inputs) is None:
        actual = outcome(operation, target.backend, inputs, together)
        for found, want in zip(actual, expected(operation, size, together), strict=True):
            check(found, want)


def check_agreement(target: Target, operation: str, size: Size) -> None:
    """In float64 and in float32."""
    single = inputs_of(operation, size, torch.float32, target.device)
    if (reason := target.refusal(operation, single)) is not None:
        pytest.skip(reason)
    check_exact(target, operation, size)
    # One backward pass for all outputs where it is slow.
    together = target.interpreted
    actual = outcome(operation, target.backend, single, together)
    exact = expected(operation, size, together)
    plain = plain_errors(operation, size, together, target.device)
    for found, want, same_dtype in zip(actual, exact, plain, strict=True):
        assert found["value"].dtype == torch.float32
        check(found, want, same_dtype, max(size))


def check_gradients(target: Target, operation: str, prepare: Callable[[Inputs], Inputs]) -> None:
    """By finite differences, of inputs that ``prepare`` has moved to where they are allowed."""
    inputs = inputs_of(operation, OPERATIONS[operation].tiny, device=target.device)
    if (reason := target.refusal(operation, inputs)) is not None:
        pytest.skip(reason)
    names = leaves(inputs)

    def function(*values: Tensor) -> tuple[Tensor, ...]:
        moved = prepare(inputs | dict(zip(names, values, strict=True)))
        return outputs(operation, target.backend, moved)

    def along_a_direction(distance: Tensor) -> Tensor:
        moved = (value + distance * step for value, step in zip(values, steps, strict=True))
        return sum(x.square().sum() for x in function(*moved))

    values = tuple(names.values())
    if target.interpreted:
        # One direction in place of every number by itself.
        steps = [torch.randn_like(value) for value in values]
        distance = torch.zeros((), dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(along_a_direction, distance)
    else:
        assert torch.autograd.gradcheck(function, values)
