"""The first call of a shape may try several launch configurations: GAREVLA_AUTOTUNE=1."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable
from typing import Any

import torch
import triton

from garevla.kernels.configs import LaunchConfig
from garevla.kernels.pairs.arguments import PairArguments
from garevla.kernels.pairs.configs import architecture

logger = logging.getLogger(__name__)

_tuned: dict[tuple[Any, ...], LaunchConfig] = {}


def tuned(
    arguments: PairArguments, kernel: str, run: Callable[[LaunchConfig], Any], *, key: str
) -> LaunchConfig:
    """The committed configuration, or when autotuning the fastest of a few, measured once for each
    shape.

    Another tile size means another order of sums: results then repeat within a process only.
    """
    default = arguments.config(kernel)
    if not autotuning() or arguments.text.device.type != "cuda":
        return default
    if torch.cuda.is_current_stream_capturing():
        return default
    shape = (arguments.num_texts, arguments.num_videos, arguments.dim)
    shape += (arguments.heads, arguments.frames, arguments.text.dtype)
    full_key = (key, architecture(arguments.text.device), arguments.precision, *shape)
    if full_key not in _tuned:
        timings = {}
        for config in candidates(default):
            try:
                timings[config] = triton.testing.do_bench(functools.partial(run, config), rep=20)
            except (triton.runtime.errors.TritonError, RuntimeError):
                continue
        for config in sorted(timings, key=timings.__getitem__):
            values = key, arguments.precision, timings[config], config
            logger.info("%s in %s: %.3f ms with %s", *values)
        _tuned[full_key] = min(timings, key=timings.__getitem__, default=default)
    return _tuned[full_key]


def autotuning() -> bool:
    """Whether the user asks for it."""
    return os.environ.get("GAREVLA_AUTOTUNE", "0") == "1"


def candidates(default: LaunchConfig) -> list[LaunchConfig]:
    """What autotuning tries: the default, and what differs from it in one respect."""
    changes = (
        # With half the warps, so that tensor cores leave a thread as many columns (tile.terms()).
        {"rows": max(16, default.rows // 2), "num_warps": max(4, default.num_warps // 2)},
        {"rows": min(128, default.rows * 2)},
        {"columns": 3 - default.columns},
        {"reduction": max(16, default.reduction // 2)},
        {"reduction": default.reduction * 2},
        {"num_warps": 12 - default.num_warps},
        {"num_stages": default.num_stages % 3 + 1},
        {"num_stages": (default.num_stages + 1) % 3 + 1},
    )
    return list(dict.fromkeys([default, *(default._replace(**change) for change in changes)]))
