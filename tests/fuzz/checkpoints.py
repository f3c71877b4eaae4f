"""Damaged checkpoints: refused by an error that names the file, never loaded."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from garevla.training.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from tests.fuzz.isolated import Failure, Isolated
from tests.fuzz.mutations import MUTATIONS


def try_checkpoint(path: Path) -> str:
    """Load a checkpoint; return what came of it."""
    try:
        load_checkpoint(path)
    except CheckpointError as error:
        return "refused by name" if str(path) in str(error) else f"refused without name: {error}"
    return "loaded"


def trials(generator: np.random.Generator) -> Iterator[str]:
    """Damage a checkpoint without end; yield what came of each."""
    isolated = Isolated(try_checkpoint)
    with tempfile.TemporaryDirectory() as folder:
        try:
            path = Path(folder, "checkpoint.pt")
            model = torch.nn.Linear(32, 32)
            save_checkpoint(path, {"model": model.state_dict(), "step": 7, "settings": {"a": "b"}})
            content = path.read_bytes()
            while True:
                mutation = str(generator.choice(list(MUTATIONS)))
                damaged = MUTATIONS[mutation](content, generator)
                path.write_bytes(damaged)
                try:
                    outcome = isolated(path)
                    if outcome == "loaded" and damaged != content:
                        outcome = "FAILURE silent: a damaged checkpoint was loaded"
                except Failure as failure:
                    outcome = f"FAILURE {failure}"
                yield f"checkpoints, {mutation}: {outcome}"
        finally:
            isolated.close()
