"""Checkpoints that are whole or not there, and read without running code from the file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from garevla.training.compatibility import upgrade_checkpoint
from garevla.utils.files import atomic_file

_FORMAT = "garevla-checkpoint-1"


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be read, or that belongs to another model or run."""


def save_checkpoint(path: str | os.PathLike[str], state: Mapping[str, Any]) -> None:
    """Write a checkpoint so that a crash at any moment leaves the old file or the new one.

    Args:
        path: the file to write or replace; its folder must exist.
        state: tensors, and plain Python values that ``torch.load(weights_only=True)`` reads.
    """
    with atomic_file(path) as file:
        torch.save({"format": _FORMAT, **state}, file)


def load_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a checkpoint, also an earlier version's, onto the CPU with ``weights_only=True``.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: the file is truncated, damaged, or not one of garevla's.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint not found: {path}")
    try:
        with path.open("rb") as file:
            state = torch.load(file, map_location="cpu", weights_only=True)
    except PermissionError:
        raise
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise CheckpointError(
            f"{path} is not a readable checkpoint; it may be truncated or damaged ({reason})"
        ) from error
    if not isinstance(state, dict) or state.get("format") != _FORMAT:
        raise CheckpointError(f"{path} is not a garevla checkpoint of format {_FORMAT!r}")
    return upgrade_checkpoint(state)


def random_state() -> dict[str, Any]:
    """State of torch's random generators, CPU and, where in use, every CUDA device."""
    return {
        "cpu": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    """Bring back what :func:`random_state` returned, CUDA only where there are such devices."""
    torch.set_rng_state(state["cpu"])
    if state["cuda"] and torch.cuda.is_available():
        for device, device_state in enumerate(state["cuda"][: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(device_state, device)
