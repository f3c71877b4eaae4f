"""The table of backends: which implementation of an operation runs.

A backend implements operations by name. ``eager`` holds the readable definition of every operation
in plain PyTorch and runs on any device; the other backends register themselves where they are
defined, those of other packages too (:func:`register_backend`). Whoever asks for a backend by name
gets it or an error that says why not; ``"auto"`` takes the most preferred one that can.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch

from garevla.utils.compiling import constant_when_compiled

AUTO = "auto"
ENVIRONMENT_VARIABLE = "GAREVLA_BACKEND"


class BackendUnavailableError(RuntimeError):
    """An explicitly requested backend cannot run here; the message says why."""


def _no_reason(*arguments: Any) -> None:
    return None


@dataclass(frozen=True)
class Implementation:
    """One backend's function for an operation.

    The predicates get the operation's arguments and look at shapes and dtypes alone, so that
    torch.compile can trace them.
    """

    run: Callable[..., Any]
    refuses: Callable[..., str | None] = _no_reason
    """Why the function cannot take these arguments, or None."""
    disadvises: Callable[..., str | None] = _no_reason
    """Why ``"auto"`` had better take another backend for these arguments, or None."""


@dataclass(frozen=True)
class Backend:
    """A named set of implementations."""

    name: str
    unavailable: Callable[[torch.device], str | None]
    """Why the backend cannot run on a device, or None."""
    operations: Mapping[str, Implementation]
    """Implementations by operation; ``eager`` lists all operations there are."""
    preference: Mapping[str, int] = field(default_factory=dict)
    """Rank for ``"auto"`` by device type, the largest first; it never takes a backend that has none
    for the device. ``"*"`` stands for every device type."""

    def rank(self, device_type: str) -> int | None:
        return self.preference.get(device_type, self.preference.get("*"))


_BACKENDS: dict[str, Backend] = {}


@constant_when_compiled
def _enter_builtin() -> None:
    """Import the backends that come with the package, which enter themselves."""
    importlib.import_module("garevla.ops.builtin")


_chosen: ContextVar[str] = ContextVar("garevla_backend", default=AUTO)


def register_backend(backend: Backend) -> None:
    """Enter a backend into the table.

    Raises:
        ValueError: the name is taken, or is ``"auto"``.
    """
    _enter_builtin()
    if backend.name == AUTO or backend.name in _BACKENDS:
        raise ValueError(f"there is a backend {backend.name!r} already")
    _BACKENDS[backend.name] = backend


def backend_names() -> tuple[str, ...]:
    """The names of all backends, in the order of their registration."""
    _enter_builtin()
    return tuple(_BACKENDS)


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Let every call inside that does not name a backend use this one.

    Raises:
        ValueError: unknown name. Whether it can run is checked where it is used.
    """
    check_backend(name)
    token = _chosen.set(name)
    try:
        yield
    finally:
        _chosen.reset(token)


def backend_status(device: torch.device | str = "cpu") -> dict[str, str | None]:
    """Every backend's name, with ``None`` where it runs on the device, else the reason why not."""
    _enter_builtin()
    device = torch.device(device)
    return {name: backend.unavailable(device) for name, backend in _BACKENDS.items()}


def resolve(
    operation: str, backend: str, device: torch.device, *arguments: Any
) -> Callable[..., Any]:
    """The function that will run an operation.

    Args:
        operation: its name.
        backend: a backend's name; ``"auto"`` leaves the choice to :func:`use_backend`, then to the
            environment variable GAREVLA_BACKEND, then to the backends' preference for the device.
        device: of the tensors.
        arguments: what the function will be called with.

    Raises:
        ValueError: unknown name of a backend.
        BackendUnavailableError: a backend chosen by name that cannot run on this device, lacks the
            operation or refuses the arguments.
    """
    _enter_builtin()
    refused, disadvised = [], []
    for name, candidate in _BACKENDS.items():
        implementation = candidate.operations.get(operation)
        if implementation is None:
            refused.append((name, f"it has no operation {operation!r}"))
        elif (reason := implementation.refuses(*arguments)) is not None:
            refused.append((name, reason))
        elif implementation.disadvises(*arguments) is not None:
            disadvised.append(name)
    name = _resolve_name(backend, device.type, tuple(refused), tuple(disadvised))
    return _BACKENDS[name].operations[operation].run


# torch.compile need not trace this: a compiled function keeps the backend of its compilation.
@constant_when_compiled
def _resolve_name(
    name: str,
    device_type: str,
    refused: tuple[tuple[str, str], ...],
    disadvised: tuple[str, ...],
) -> str:
    device, reasons = torch.device(device_type), dict(refused)

    def unsuited(choice: str) -> str | None:
        return reasons.get(choice) or _BACKENDS[choice].unavailable(device)

    choices = {
        "backend": name,
        "use_backend": _chosen.get(),
        ENVIRONMENT_VARIABLE: os.environ.get(ENVIRONMENT_VARIABLE, AUTO),
    }
    for source, choice in choices.items():
        check_backend(choice, source)
        if choice != AUTO:
            if (reason := unsuited(choice)) is not None:
                raise BackendUnavailableError(f"backend {choice!r} cannot run here: {reason}")
            return choice
    ranks = {
        choice: rank
        for choice, backend in _BACKENDS.items()
        if (rank := backend.rank(device_type)) is not None
    }
    preferred = sorted(ranks, key=lambda choice: (choice in disadvised, -ranks[choice]))
    return next(choice for choice in preferred if unsuited(choice) is None)


def check_available(name: str, device: torch.device) -> None:
    """Raise where a backend cannot run on a device, whatever the operation.

    Raises:
        ValueError: unknown name.
        BackendUnavailableError: it cannot; the message says why.
    """
    check_backend(name)
    if name != AUTO and (reason := _BACKENDS[name].unavailable(device)) is not None:
        raise BackendUnavailableError(f"backend {name!r} cannot run here: {reason}")


def check_backend(name: str, source: str = "backend") -> None:
    """Raise ValueError unless ``name`` is ``"auto"`` or a backend's name."""
    _enter_builtin()
    if name != AUTO and name not in _BACKENDS:
        raise ValueError(f"{source} must be 'auto' or one of {sorted(_BACKENDS)}, got {name!r}")
