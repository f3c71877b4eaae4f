"""Which implementation of the pair operation runs.

``eager`` is the readable definition in plain PyTorch and runs on any device; ``native`` is the
compiled extension; ``triton`` the Triton kernels, for GPUs. Whoever asks for a backend by name gets
it or an error; ``"auto"`` takes the first of its order that runs on the tensors' device.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

import torch
from torch import Tensor

import garevla.kernels.backend
import garevla.ops.eager.direction
import garevla.ops.eager.pairs
import garevla.ops.eager.statistics
import garevla.ops.native
from garevla.ops.eager.pairs import PairTerms
from garevla.ops.eager.statistics import PairStatistics
from garevla.utils.compiling import constant_when_compiled

AUTO = "auto"
ENVIRONMENT_VARIABLE = "GAREVLA_BACKEND"


class Backend(NamedTuple):
    """One implementation of the pair operation; see the functions' namesakes in ``garevla``."""

    name: str
    supports: Callable[[torch.device], str | None]
    """Why the backend cannot run on a device, or None."""
    pair_similarity: Callable[..., Tensor]
    pair_terms: Callable[..., PairTerms]
    pair_statistics: Callable[..., PairStatistics]
    direction: Callable[[Tensor, Tensor, float], Tensor]
    largest_attention: float = math.inf
    """The most heads · frames of a video that the pair operation takes."""
    auto_attention: float = math.inf
    """The most with which ``"auto"`` takes it: beyond, it runs but is slow."""


class BackendUnavailableError(RuntimeError):
    """An explicitly requested backend cannot run here; the message says why."""


_BACKENDS = {
    backend.name: backend
    for backend in (
        Backend(
            "native",
            garevla.ops.native.supports,
            garevla.ops.native.pair_similarity,
            garevla.ops.native.pair_terms,
            garevla.ops.native.pair_statistics,
            garevla.ops.native.direction,
        ),
        Backend(
            "eager",
            lambda device: None,
            garevla.ops.eager.pairs.pair_similarity,
            garevla.ops.eager.pairs.pair_terms,
            garevla.ops.eager.statistics.pair_statistics,
            garevla.ops.eager.direction.direction,
        ),
        Backend(
            "triton",
            garevla.kernels.backend.supports,
            garevla.kernels.backend.pair_similarity,
            garevla.kernels.backend.pair_terms,
            garevla.kernels.backend.pair_statistics,
            garevla.kernels.backend.direction,
            garevla.kernels.backend.LARGEST_ATTENTION,
            garevla.kernels.backend.AUTO_ATTENTION,
        ),
    )
}

# "auto" takes the first of these that runs; by device.
_AUTO_ORDER = {"cuda": ("triton", "native", "eager")}
_AUTO_ORDER_ELSEWHERE = ("native", "eager")

_chosen: ContextVar[str] = ContextVar("garevla_backend", default=AUTO)


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Let every call inside that does not name a backend use this one.

    Raises:
        ValueError: unknown name. Whether it can run is checked where it is used.
    """
    _check_name(name, "backend")
    token = _chosen.set(name)
    try:
        yield
    finally:
        _chosen.reset(token)


def backend_status(device: torch.device | str = "cpu") -> dict[str, str | None]:
    """Every backend's name, with ``None`` where it runs on the device, else the reason why not."""
    device = torch.device(device)
    return {name: backend.supports(device) for name, backend in _BACKENDS.items()}


def resolve_backend(name: str, device: torch.device | None = None, attention: int = 0) -> Backend:
    """The backend that will run.

    Args:
        name: a backend's name; ``"auto"`` leaves the choice to :func:`use_backend`, then to the
            environment variable GAREVLA_BACKEND, then to the device's order of preference.
        device: of the tensors; None stands for the CPU.
        attention: heads · frames of the videos, where they count.

    Raises:
        ValueError: unknown name.
        BackendUnavailableError: a backend chosen by name that cannot run on this device, or with
            so many heads and frames.
    """
    device_type = "cpu" if device is None else device.type
    backends = _BACKENDS.values()
    too_narrow = tuple(b.name for b in backends if attention > b.largest_attention)
    slow = tuple(b.name for b in backends if attention > b.auto_attention)
    return _BACKENDS[_resolve_name(name, device_type, too_narrow, slow)]


# torch.compile need not trace this: a compiled function keeps the backend of its compilation.
@constant_when_compiled
def _resolve_name(
    name: str, device_type: str, too_narrow: tuple[str, ...], slow: tuple[str, ...]
) -> str:
    device = torch.device(device_type)

    def unsuited(choice: str) -> str | None:
        backend = _BACKENDS[choice]
        if choice in too_narrow:
            return f"heads · frames of its videos may be at most {backend.largest_attention}"
        return backend.supports(device)

    choices = {
        "backend": name,
        "use_backend": _chosen.get(),
        ENVIRONMENT_VARIABLE: os.environ.get(ENVIRONMENT_VARIABLE, AUTO),
    }
    for source, choice in choices.items():
        _check_name(choice, source)
        if choice != AUTO:
            reason = unsuited(choice)
            if reason is not None:
                raise BackendUnavailableError(f"backend {choice!r} cannot run here: {reason}")
            return choice
    order = _AUTO_ORDER.get(device_type, _AUTO_ORDER_ELSEWHERE)
    return next(choice for choice in order if choice not in slow and unsuited(choice) is None)


def check_backend(name: str) -> None:
    """Raise ValueError unless ``name`` is ``"auto"`` or a backend's name."""
    _check_name(name, "backend")


def _check_name(name: str, source: str) -> None:
    if name != AUTO and name not in _BACKENDS:
        raise ValueError(f"{source} must be 'auto' or one of {sorted(_BACKENDS)}, got {name!r}")
