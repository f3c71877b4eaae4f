"""A target's results against eager's in float64."""

from __future__ import annotations

import pytest
import torch

from tests.conformance.error_model import check, expected, outcome, plain_errors
from tests.conformance.operations import Size, inputs_of
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
    exact, plain = (of(operation, size, together) for of in (expected, plain_errors))
    for found, want, same_dtype in zip(actual, exact, plain, strict=True):
        assert found["value"].dtype == torch.float32
        check(found, want, same_dtype, max(size))
