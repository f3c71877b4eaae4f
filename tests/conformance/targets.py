"""Which backends are tested, on which device, and on which of their operations."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch

import garevla
from garevla.ops import backends
from tests.conformance.operations import OPERATIONS, Operation, Size
from tests.helpers import operation as implementation

# The largest product of an operation's sizes whose interpreted kernels are not slow.
MOST_INTERPRETED = 50_000
# What a reason says of a backend that is installed or built, and broken.
BROKEN = "cannot be used"


@dataclass(frozen=True)
class Target:
    """A backend on a type of device."""

    backend: str
    device: str

    def __str__(self) -> str:
        return f"{self.backend}-{self.device}"

    @property
    def interpreted(self) -> bool:
        """Whether kernels run in Triton's interpreter, where only small sizes are affordable."""
        return (self.backend, self.device) == ("triton", "cpu")

    def usual(self, label: str) -> Size:
        """An operation's usual size; the tiny one where kernels are interpreted."""
        operation = OPERATIONS[label]
        return operation.tiny if self.interpreted else operation.usual

    def require_that_nan_is_dropped(self) -> None:
        """Skip the test where the interpreter lets NaN through a maximum, which no GPU does."""
        if self.interpreted:
            from tests.kernels.interpreter import maximum_keeps_nan

            if maximum_keeps_nan():
                pytest.skip("this Triton's interpreter returns NaN where a GPU does not")

    @property
    def marks(self) -> list[pytest.MarkDecorator]:
        return [pytest.mark.gpu] if self.device == "cuda" else []

    def owns(self, label: str) -> bool:
        """Whether the backend has an implementation of its own, not eager's."""
        if self == EAGER:
            return True
        name = OPERATIONS[label].name
        table = backends._BACKENDS
        own = table[self.backend].operations.get(name)
        return own is not None and own.run is not table["eager"].operations[name].run

    def refusal(self, label: str, inputs: dict[str, Any]) -> str | None:
        """Why the backend does not take these inputs, or None."""
        operation = OPERATIONS[label]
        entry = backends._BACKENDS[self.backend].operations[operation.name]
        return entry.refuses(*operation.arguments(inputs))

    def function(self, name: str) -> Callable[..., Any]:
        return implementation(name, self.backend)

    def require(self) -> None:
        """Skip the test where the backend cannot run; fail where it is there, but broken."""
        reason = garevla.backend_status(self.device)[self.backend]
        if reason is not None:
            (pytest.fail if BROKEN in reason else pytest.skip)(reason)


TARGETS = [
    Target(backend, device)
    for backend in backends.backend_names()
    if backend != "eager"
    for device in ("cpu", "cuda")
]
GPU_TARGETS = [target for target in TARGETS if target.device == "cuda"]
EAGER = Target("eager", "cpu")
# Where Triton's kernels run on this machine.
TRITON = Target("triton", "cuda" if torch.cuda.is_available() else "cpu")


def on_targets(targets: Sequence[Target] = TARGETS) -> pytest.MarkDecorator:
    """Run a test on every target."""
    params = [pytest.param(target, id=str(target), marks=target.marks) for target in targets]
    return pytest.mark.parametrize("target", params)


def on_operations(
    targets: Sequence[Target] = TARGETS,
    labels: Sequence[str] = tuple(OPERATIONS),
    *,
    slow_where_interpreted: bool = False,
) -> pytest.MarkDecorator:
    """Run a test on every target, for every operation of its own."""
    params = [
        pytest.param(
            target,
            label,
            id=f"{target}-{label}",
            marks=target.marks + _slow(slow_where_interpreted and target.interpreted),
        )
        for target in targets
        for label in labels
        if target.owns(label)
    ]
    return pytest.mark.parametrize(("target", "operation"), params)


def on_sizes(
    targets: Sequence[Target] = TARGETS, labels: Sequence[str] = tuple(OPERATIONS)
) -> pytest.MarkDecorator:
    """Run a test on every target, for every operation of its own, in every size."""
    params = [
        pytest.param(
            target,
            label,
            size,
            id=f"{target}-{label}-{size}",
            marks=target.marks + _slow(target.interpreted and math.prod(size) > MOST_INTERPRETED),
        )
        for target in targets
        for label in labels
        if target.owns(label)
        for size in sizes_on(target, OPERATIONS[label])
    ]
    return pytest.mark.parametrize(("target", "operation", "size"), params)


def _slow(is_slow: bool) -> list[pytest.MarkDecorator]:
    return [pytest.mark.slow] if is_slow else []


def sizes_on(target: Target, operation: Operation) -> tuple[Size, ...]:
    """An operation's sizes that a target can afford."""
    if target.interpreted:
        return operation.small
    more = operation.large if target.device == "cuda" else ()
    return operation.small + operation.medium + more
