"""Checkpoints that are whole or not there, and read without running code from the file."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from garevla.training.compatibility import upgrade_checkpoint
from garevla.utils.digest import DigestingWriter, is_as_written
from garevla.utils.files import atomic_file

_FORMAT = "garevla-checkpoint-1"


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be read, or that belongs to another model or run."""


def save_checkpoint(path: str | os.PathLike[str], state: Mapping[str, Any]) -> None:
    """Write a checkpoint so that a crash at any moment leaves the old file or the new one.

    Args:
        path: the file to write or replace; its folder must exist.
        state: tensors, and plain Python values that ``torch.load(weights_only=True)`` reads.

    Raises:
        OSError: it cannot be written.
    """
    with atomic_file(path) as file:
        writer = DigestingWriter(file)
        torch.save({"format": _FORMAT, **state}, writer)  # type: ignore[arg-type]
        writer.finish()


def load_checkpoint(path: str | os.PathLike[str], required: Iterable[str] = ()) -> dict[str, Any]:
    """Read a checkpoint, also an earlier version's, onto the CPU with ``weights_only=True``.

    Args:
        path: the file.
        required: keys that it must have.

    Raises:
        FileNotFoundError: no such file.
        PermissionError: it may not be read.
        CheckpointError: the file is truncated, damaged, or not one of garevla's, or lacks a key.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint not found: {path}")
    _check_whole(path)
    try:
        with path.open("rb") as file:
            state = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch's own message advises to load it all the same.
        raise CheckpointError(
            f"{path} is no garevla checkpoint: it holds more than tensors and plain values, which "
            "might run code and is not loaded"
        ) from error
    except PermissionError:
        raise
    except Exception as error:
        raise _unreadable(path, str(error).partition("\n")[0]) from error
    if not isinstance(state, dict) or state.get("format") != _FORMAT:
        raise CheckpointError(f"{path} is not a garevla checkpoint of format {_FORMAT!r}")
    state = upgrade_checkpoint(state)
    absent = [repr(key) for key in required if key not in state]
    if absent:
        raise CheckpointError(f"{path} lacks {', '.join(absent)}")
    return state


def _check_whole(path: Path) -> None:
    """Raise CheckpointError where a file is not what was written; earlier versions wrote no digest.

    Raises:
        PermissionError: the file may not be read.
    """
    if not is_as_written(path) or not zipfile.is_zipfile(path):
        raise _unreadable(path, "it is not as it was written")


def _unreadable(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(
        f"{path} is not a readable checkpoint; it may be truncated or damaged ({reason})"
    )


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
