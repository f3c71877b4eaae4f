"""Damaged checkpoints: refused by an error that names the file, never loaded."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from garevla.training.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from tests.fuzz.isolated import Failure, Isolated
from tests.fuzz.mutations import MUTATIONS


def try_checkpoint(path: Path) -> str:
    """Load a checkpoint; return what came of it."""
    try:
        loaded = load_checkpoint(path)
    except CheckpointError as error:
        if str(path) not in str(error):
            raise AssertionError("the file is not named") from error
        return "refused by name"
    state = _state()
    weights = state.pop("model")
    is_whole = all(loaded.get(key) == value for key, value in state.items()) and all(
        torch.equal(loaded["model"][key], value) for key, value in weights.items()
    )
    return "loaded as it was" if is_whole else "FAILURE silent: a damaged checkpoint was loaded"


def _state() -> dict[str, Any]:
    weights = {"weight": torch.arange(1024.0).view(32, 32), "bias": torch.ones(32)}
    return {"model": weights, "step": 7, "settings": {"a": "b"}}


def trials(generator: np.random.Generator) -> Iterator[str]:
    """Damage a checkpoint without end; yield what came of each."""
    isolated = Isolated(try_checkpoint)
    with tempfile.TemporaryDirectory() as folder:
        try:
            path = Path(folder, "checkpoint.pt")
            save_checkpoint(path, _state())
            content = path.read_bytes()
            while True:
                mutation = str(generator.choice(list(MUTATIONS)))
                path.write_bytes(MUTATIONS[mutation](content, generator))
                try:
                    outcome = isolated(path)
                except Failure as failure:
                    outcome = f"FAILURE {failure}"
                yield f"checkpoints, {mutation}: {outcome}"
        finally:
            isolated.close()
