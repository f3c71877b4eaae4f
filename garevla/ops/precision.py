"""Named precisions of float32 matrix products, inside and outside of the head."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from garevla.utils.compiling import constant_when_compiled

PRECISIONS = {"float32": "highest", "tf32x3": "highest", "tf32": "high", "bfloat16": "medium"}
"""Preset -> what :func:`torch.set_float32_matmul_precision` calls it."""


@dataclass(eq=False)
class _Entry:
    preset: str
    restore: Callable[[], None]
    """Gives PyTorch the setting that it had before."""


_entered: list[_Entry] = []
"""All :func:`use_precision` that somebody is inside of, whatever the thread; of their presets the
last holds for the process."""

_followers: list[Callable[[str], object]] = []
_lock = threading.RLock()

_chosen: ContextVar[str | None] = ContextVar("garevla_precision", default=None)


@contextmanager
def use_precision(name: str) -> Iterator[None]:
    """Compute float32 matrix products in a named precision; inputs and results stay float32.

    Put the backward pass inside, too. PyTorch's own products follow a setting of PyTorch's that
    holds for the whole process, encoders included.

    Args:
        name: ``"float32"``: exact, torch's default. ``"tf32x3"``: three products of 10 bits'
            mantissa for one, close to float32, in Triton kernels; exact elsewhere. ``"tf32"``:
            operands of 10 bits' mantissa on CUDA; exact on a CPU. ``"bfloat16"``: operands of 7
            bits' mantissa in Triton kernels and on a CPU with AMX, or, where the native backend is
            built, with AVX512-BF16; exact on other CPUs (``garevla env`` says which this one is),
            as ``"tf32"`` elsewhere on CUDA. Accumulation is in float32 always.

    Raises:
        ValueError: unknown name.
    """
    if name not in PRECISIONS:
        raise ValueError(f"precision must be one of {sorted(PRECISIONS)}, got {name!r}")
    token = _chosen.set(name)
    with _lock:
        entry = _Entry(name, _set_torch(name))
        _entered.append(entry)
        _tell_followers()
    try:
        yield
    finally:
        _chosen.reset(token)
        with _lock:
            place = _entered.index(entry)
            del _entered[place]
            if place == len(_entered):
                entry.restore()
            else:
                # Another thread's has set PyTorch's since, and will leave later.
                _entered[place].restore = entry.restore
            _tell_followers()


def _set_torch(preset: str) -> Callable[[], None]:
    before, by_backend = _torch_precision(), _settings_by_backend()
    # Not where it holds already: PyTorch tells "never set" from "set to the default".
    if before == PRECISIONS[preset]:
        return lambda: None
    torch.set_float32_matmul_precision(PRECISIONS[preset])

    def restore() -> None:
        if before is not None:
            torch.set_float32_matmul_precision(before)
        else:
            for settings, value in by_backend:
                settings.fp32_precision = value

    return restore


# A compiled function keeps the precision of its compilation, as it keeps the backend.
@constant_when_compiled
def current_precision() -> str:
    """:func:`use_precision`'s preset, or the one that PyTorch's own setting stands for."""
    if (chosen := _chosen.get()) is not None:
        return chosen
    setting = _torch_precision()
    if setting is None:
        return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "float32"
    return {"highest": "float32", "high": "tf32", "medium": "bfloat16"}[setting]


def follow(function: Callable[[str], object]) -> None:
    """Call a function with the preset that holds for the process, now and whenever one is entered
    or left: for what has one state, as PyTorch's own setting is one."""
    with _lock:
        _followers.append(function)
        _tell_followers()


def _tell_followers() -> None:
    name = _entered[-1].preset if _entered else "float32"
    for function in _followers:
        function(name)


def _settings_by_backend() -> list[tuple[Any, str]]:
    """PyTorch's settings for one backend each, with their values; before 2.9 there are none."""
    backends = (torch.backends.cuda, torch.backends.mkldnn)
    settings: list[Any] = [getattr(backend, "matmul", None) for backend in backends]
    return [(each, each.fp32_precision) for each in settings if hasattr(each, "fp32_precision")]


def _torch_precision() -> str | None:
    """None where it was set backend by backend (``torch.backends.….fp32_precision``), and PyTorch
    has no one word for it."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return None


def full_precision(like: Tensor) -> AbstractContextManager[None]:
    """Switch autocast off for the head: published in float32, and cheap in it."""
    return torch.autocast(device_type=like.device.type, enabled=False)
