"""Every backend's operations agree with their eager namesakes, gradients included."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.conformance.agreement import check_agreement, check_gradients
from tests.conformance.error_model import check, expected, outcome, plain_errors
from tests.conformance.operations import OPERATIONS, Size, inputs_of, leaves, outputs, results
from tests.conformance.targets import EAGER, TARGETS, Target, on_operations, on_sizes
from tests.helpers import relative_error

STATISTICS = [label for label in OPERATIONS if "statistics" in label]


@on_sizes()
def test_agrees_with_eager(target: Target, operation: str, size: Size):
    check_agreement(target, operation, size)


@on_operations()
def test_a_wrong_gradient_is_noticed(target: Target, operation: str):
    size, together = OPERATIONS[operation].usual, target.interpreted
    inputs = inputs_of(operation, size, torch.float32, target.device)
    actual = outcome(operation, target.backend, inputs, together)
    exact = expected(operation, size, together)
    plain = plain_errors(operation, size, together, target.device)
    for found, want, same_dtype in zip(actual, exact, plain, strict=True):
        check(found, want, same_dtype, max(size))
        # What is truly 0 is rounding beside the others.
        others = [x.norm() for name, x in want.items() if name != "value" and x is not None]
        least = 1e-12 * max(others, default=0.0)
        for name, gradient in want.items():
            if name != "value" and gradient is not None and gradient.norm() > least:
                for factor in (0.0, -1.0, 2.0):
                    wrong = found | {name: factor * found[name]}
                    with pytest.raises(AssertionError):
                        check(wrong, want, same_dtype, max(size))


@on_operations()
def test_gradcheck(target: Target, operation: str):
    check_gradients(target, operation, OPERATIONS[operation].prepare)


@on_operations()
def test_value_without_gradient(target: Target, operation: str):
    inputs = inputs_of(operation, target.usual(operation), torch.float32, target.device)
    want = outputs(operation, target.backend, inputs)
    with torch.no_grad():
        found = outputs(operation, target.backend, inputs)
    for got, value in zip(found, want, strict=True):
        assert relative_error(got, value) < 1e-6


@on_operations()
def test_gradients_one_by_one(target: Target, operation: str):
    """An input's gradient does not depend on which others are wanted."""
    inputs = inputs_of(operation, OPERATIONS[operation].tiny, torch.float32, target.device)
    named = leaves(inputs)
    total = sum(value.square().sum() for value in outputs(operation, target.backend, inputs))
    wanted = torch.autograd.grad(total, list(named.values()), allow_unused=True)
    for name, want in list(zip(named, wanted, strict=True))[:3]:
        if want is None:
            continue
        alone = {k: v.detach() if k in named and k != name else v for k, v in inputs.items()}
        total = sum(value.square().sum() for value in outputs(operation, target.backend, alone))
        (found,) = torch.autograd.grad(total, named[name])
        assert torch.equal(found, want), name


@on_operations()
def test_bits_repeat(target: Target, operation: str):
    large = OPERATIONS[operation].large[-1]
    size = large if target.device == "cuda" else target.usual(operation)
    inputs = inputs_of(operation, size, torch.float32, target.device)
    first, second = (results(operation, target.backend, inputs) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


@on_operations()
def test_non_contiguous_inputs(target: Target, operation: str):
    inputs = inputs_of(operation, target.usual(operation), torch.float32, target.device)
    strided = dict(inputs)
    for name, value in inputs.items():
        if isinstance(value, Tensor) and value.dim():
            strided[name] = torch.stack([value, value], dim=-1)[..., 0]
            assert not strided[name].is_contiguous()
    found, want = (outputs(operation, target.backend, x) for x in (strided, inputs))
    assert all(torch.equal(got, value) for got, value in zip(found, want, strict=True))
    named = list(leaves(inputs).values())
    # The gradient of a sum is one number, expanded.
    expanded = torch.autograd.grad(sum(x.sum() for x in found), named, allow_unused=True)
    plain = torch.autograd.grad(want, named, [torch.ones_like(x) for x in want], allow_unused=True)
    for got, value in zip(expanded, plain, strict=True):
        assert (got is None) == (value is None)
        assert got is None or torch.equal(got, value)


@on_operations()
def test_autocast_changes_nothing(target: Target, operation: str):
    inputs = inputs_of(operation, target.usual(operation), torch.float32, target.device)
    want = results(operation, target.backend, inputs)
    with torch.autocast(target.device, torch.bfloat16):
        found = results(operation, target.backend, inputs)
    assert all(torch.equal(got, value) for got, value in zip(found, want, strict=True))


@on_operations([EAGER, *TARGETS], STATISTICS)
def test_one_video_has_no_variance(target: Target, operation: str):
    """Nor a gradient of it, however the backward pass rounds."""
    given = OPERATIONS[operation]
    texts, _, *others = given.usual
    inputs = inputs_of(operation, (texts, 1, *others), torch.float32, target.device)

    def rounded_otherwise(saved: Tensor) -> Tensor:
        return saved * (1 + 2**-20) if saved.is_floating_point() else saved

    with torch.autograd.graph.saved_tensors_hooks(lambda saved: saved, rounded_otherwise):
        found = target.function(given.name)(*given.arguments(inputs)).norm_variance
    assert found.eq(0).all()
    gradients = torch.autograd.grad(found.sum(), leaves(inputs).values(), allow_unused=True)
    assert all(gradient is None or gradient.eq(0).all() for gradient in gradients)
