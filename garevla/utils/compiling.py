"""Marks for torch.compile that do not import it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

_Function = TypeVar("_Function", bound=Callable[..., object])


def constant_when_compiled(function: _Function) -> _Function:
    """Let torch.compile take the function's first result for a constant instead of tracing it.

    As ``torch.compiler.assume_constant_result``, which imports ``torch._dynamo`` to set this one
    attribute: more than a second, also for those who never compile.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function
