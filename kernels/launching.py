"""How kernels are launched; tests record launches instead, to compile for absent processors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

Recorder = Callable[[Any, dict[str, Any], dict[str, Any]], None]
_recorder: Recorder | None = None


@contextmanager
def recording(recorder: Recorder) -> Iterator[None]:
    """Hand launches to ``recorder(kernel, arguments, options)`` instead of running them."""
    global _recorder
    _recorder, before = recorder, _recorder
    try:
        yield
    finally:
        _recorder = before


def interpreted(device: torch.device) -> bool:
    """Whether kernels on this device would run in Triton's interpreter."""
    return device.type == "cpu" and _recorder is None


def launch(
    kernel: Any, grid: tuple[int, ...], *, num_warps: int, num_stages: int, **arguments: Any
) -> None:
    """Run a kernel on the current stream of its arguments' device."""
    # Fused multiply-adds are asked for: the default is about to change.
    options = {"num_warps": num_warps, "num_stages": num_stages, "enable_fp_fusion": True}
    if _recorder is not None:
        _recorder(kernel, arguments, options)
        return
    with _device_of(arguments.values()):
        kernel[grid](**arguments, **options)


def _device_of(values: Iterable[Any]) -> AbstractContextManager[Any]:
    tensors = (x for x in tree_leaves(list(values)) if isinstance(x, Tensor))
    device = next(tensors).device
    return torch.cuda.device(device if device.type == "cuda" else -1)
