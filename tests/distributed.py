"""Tests that run in several processes, over gloo."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp
from torch import distributed


def run_processes(count: int, folder: Path, function: Callable[..., Any], *arguments: Any) -> list:
    """What ``function(rank, *arguments)`` returns in each of ``count`` processes.

    The function is a module's; what it raises fails the test.
    """
    mp.spawn(_run, (count, str(folder), function, arguments), nprocs=count)
    return [pickle.loads((folder / f"{rank}.pickle").read_bytes()) for rank in range(count)]


def _run(
    rank: int, count: int, folder: str, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=count
    )
    try:
        found = function(rank, *arguments)
        Path(folder, f"{rank}.pickle").write_bytes(pickle.dumps(found))
    finally:
        distributed.destroy_process_group()
