"""Which implementation of the pair operation runs.

A backend is a name. ``eager`` is the readable definition in plain PyTorch and runs on any device;
compiled backends register themselves here with the reason why they cannot run, where they cannot.
"""

from __future__ import annotations

EAGER = "eager"


class BackendUnavailableError(RuntimeError):
    """An explicitly requested backend cannot run here; the message says why."""


def backend_status() -> dict[str, str | None]:
    """Every backend's name, with ``None`` where it is available, else the reason it is not."""
    return {EAGER: None}


def resolve_backend(name: str) -> str:
    """Turn a requested backend name into the one that will run.

    Args:
        name: ``"auto"`` (the fastest available) or a backend's name.

    Raises:
        ValueError: unknown name.
        BackendUnavailableError: a known backend that cannot run here.
    """
    if name == "auto":
        return EAGER
    status = backend_status()
    if name not in status:
        raise ValueError(f"backend must be 'auto' or one of {sorted(status)}, got {name!r}")
    if status[name] is not None:
        raise BackendUnavailableError(f"backend {name!r} cannot run here: {status[name]}")
    return name
