"""How far a backend may be from eager's float64: a small multiple of eager's error in float32."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from tests.conformance.operations import (
    OPERATIONS,
    Inputs,
    Size,
    exact_inputs,
    inputs_of,
    leaves,
    outputs,
)
from tests.helpers import relative_error

Outcome = list[dict[str, Tensor | None]]

# Evaluations of the plain version, of inputs that differ by a rounding each.
NUM_ROUNDINGS = 4


def outcome(operation: str, backend: str, inputs: Inputs, together: bool = False) -> Outcome:
    """For each of an operation's outputs: itself, and the gradients of a weighted sum of it.

    Args:
        together: one backward pass, for the sum over all outputs; the first output has its
            gradients.
    """
    torch.manual_seed(1)
    named, values = leaves(inputs), outputs(operation, backend, inputs)
    weights = [torch.randn(value.shape, dtype=torch.float64).to(value) for value in values]
    found: Outcome = [{"value": value.detach().cpu()} for value in values]
    groups = [range(len(values))] if together else [[n] for n in range(len(values))]
    for group in groups:
        gradients = torch.autograd.grad(
            [values[n] for n in group],
            list(named.values()),
            [weights[n] for n in group],
            retain_graph=True,
            allow_unused=True,
        )
        # What an output does not depend on has the gradient None, or 0.
        for name, gradient in zip(named, gradients, strict=True):
            found[group[0]][name] = None if gradient is None else gradient.cpu()
    return found


def errors(found: dict[str, Tensor | None], exact: dict[str, Tensor | None]) -> dict[str, float]:
    """Relative errors of an output and its gradients.

    A gradient that is truly 0 (one frame: no attention moves) is measured by the largest, a value
    that is truly 0 (the covariance of one text) by itself.
    """
    present = {name: want for name, want in exact.items() if want is not None}
    gradients = [want for name, want in present.items() if name != "value"]
    largest = max((float(want.norm()) for want in gradients), default=0.0)
    result = {}
    for name, want in present.items():
        got = torch.zeros_like(want) if found[name] is None else found[name]
        scale = 1.0 if name == "value" else max(largest, 1e-300)
        if want.norm() <= 1e-12 * scale:
            result[name] = float(got.double().norm()) / scale
        else:
            result[name] = relative_error(got, want)
    return result


def rounded(operation: str, size: Size, draw: int, device: str = "cpu") -> Inputs:
    """The inputs in float32, each number rounded up or down by chance; draw 0 to the nearest."""
    single = inputs_of(operation, size, torch.float32, device)
    if draw == 0:
        return single
    generator = torch.Generator().manual_seed(draw)
    for name, exact in leaves(exact_inputs(OPERATIONS[operation].draw, size)).items():
        away = torch.rand(exact.shape, generator=generator, dtype=torch.float64) - 0.5
        unit = torch.finfo(torch.float32).eps / 2
        moved = exact.detach() * (1 + unit * away.sign())
        single[name] = moved.to(device, torch.float32).requires_grad_()
    return single


@lru_cache(maxsize=4)
def expected(operation: str, size: Size, together: bool = False) -> Outcome:
    """What eager finds in float64."""
    return outcome(operation, "eager", inputs_of(operation, size), together)


@lru_cache(maxsize=4)
def plain_errors(
    operation: str, size: Size, together: bool = False, device: str = "cpu"
) -> list[dict[str, float]]:
    """For each output, the errors that eager makes in float32, on the same device: its sums have
    another order there, its functions other roundings.

    One evaluation may be exact by luck, and where a result is ill-conditioned the luck decides: the
    largest of a few, of inputs rounded one way or the other, is what float32 lets one hope for.
    """
    exact = expected(operation, size, together)
    drawn = []
    for draw in range(NUM_ROUNDINGS):
        found = outcome(operation, "eager", rounded(operation, size, draw, device), together)
        drawn.append([errors(got, want) for got, want in zip(found, exact, strict=True)])
    return [
        {name: max(of[name] for of in output) for name in output[0]}
        for output in zip(*drawn, strict=True)
    ]


def check(
    found: dict[str, Tensor | None],
    exact: dict[str, Tensor | None],
    plain: dict[str, float] | None = None,
    terms: int = 1,
) -> None:
    """Fail unless the errors are rounding.

    In float32 that is three times the plain version's, and the typical error of adding up as many
    terms as the longest sum has: √terms roundings.
    """
    for name, error in errors(found, exact).items():
        allowed = 1e-11
        if plain is not None:
            allowed = 3 * plain[name] + terms**0.5 * torch.finfo(torch.float32).eps / 2
        assert error <= allowed, (name, error, allowed)
