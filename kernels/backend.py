"""The ``triton`` backend: what runs where, and the pair operation's functions.

Importing this does not import triton: that happens when the backend is first asked whether it can
run (:func:`unavailable`), so that the core needs torch alone. The operators are registered with
torch.library (namespace ``garevla_triton``): they work under autograd, torch.compile and autocast,
on the current device and stream.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from typing import Any

import torch
from torch import Tensor

from garevla.increments.low_rank.factors import TextFactors, VideoFactors
from garevla.ops.backends import (
    Backend,
    Implementation,
    backend_status,
    register_backend,
)
from garevla.ops.eager.direction import sampled_direction
from garevla.ops.hidden.factors import HiddenPairs
from garevla.ops.hidden.operators import hidden_operations
from garevla.ops.hidden.tiles import TileKernels
from garevla.ops.operators import pair_operations
from garevla.ops.precision import current_precision
from garevla.utils.compiling import constant_when_compiled
from garevla.utils.versions import version_numbers

NAME, NAMESPACE = "triton", "garevla_triton"
OLDEST_CAPABILITY = (8, 0)
OLDEST_TRITON = (3, 6)
LARGEST_ATTENTION = 126
"""The most heads · frames: with the two constants a basis tile of 128 columns."""

LARGEST_HIDDEN = 64
"""The most frames, and heads · frames, that the hidden layers' kernels hold a tile of."""


@functools.cache
def _unusable(device_type: str) -> str | None:
    """Why Triton itself cannot be used, or None."""
    try:
        import triton

        if version_numbers(triton.__version__) < OLDEST_TRITON:
            oldest = ".".join(map(str, OLDEST_TRITON))
            return f"the kernels are for Triton {oldest} and newer, this is {triton.__version__}"

        import garevla.kernels.pairs.operators  # noqa: F401

        if device_type == "cuda":
            # Compiles a little C, for which there must be a compiler and Python's headers.
            from triton.runtime import driver

            driver.active.get_current_target()
    except Exception as error:
        return f"triton cannot be used: {type(error).__name__}: {error}"
    return None


def unavailable(device: torch.device) -> str | None:
    """Why the backend cannot run on a device, or None."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if device.type == "cpu":
        if os.environ.get("TRITON_INTERPRET") != "1":
            return (
                "Triton kernels run on GPUs; on a CPU under the interpreter alone, for tests "
                "(TRITON_INTERPRET=1)"
            )
    elif device.type != "cuda":
        return f"there are no kernels for {device.type} devices"
    elif not torch.cuda.is_available():
        return "there is no CUDA device"
    elif torch.version.hip is not None:
        return "the kernels have not been tried on AMD GPUs"
    elif torch.cuda.get_device_capability(device) < OLDEST_CAPABILITY:
        return "the GPU is older than compute capability 8.0"
    return _unusable(device.type)


def direction(unit_coefficients: Tensor, basis: Tensor, alpha: float) -> Tensor:
    """As the eager operation."""
    from garevla.kernels.direction import direction as triton_direction

    return triton_direction(unit_coefficients, basis, alpha, current_precision())


def frame_alignment(
    captions: Tensor,
    frames: Tensor,
    logit_scale: Tensor | float,
    caption_mask: Tensor | None = None,
    frame_mask: Tensor | None = None,
) -> Tensor:
    """As the eager operation, with the cosines in registers; A·B numbers are kept."""
    from garevla.kernels.frames.alignment import frame_alignment as triton_alignment

    return triton_alignment(
        captions, frames, logit_scale, caption_mask, frame_mask, current_precision()
    )


def _too_wide(text: TextFactors, video: VideoFactors, *others: Any) -> str | None:
    if video.key_bias[0].numel() > LARGEST_ATTENTION:
        return f"heads · frames of its videos may be at most {LARGEST_ATTENTION}"
    return None


@constant_when_compiled
def _native_runs(device_type: str) -> bool:
    return backend_status(device_type)["native"] is None


# Pairs from which triton is faster, on an H200 (docs/performance.md).
_MANY_PAIRS = 2**18


def _pairs_slower(text: TextFactors, video: VideoFactors, *others: Any) -> str | None:
    if not _native_runs(text.features.device.type):
        return None
    exact = text.features.dtype == torch.float64 or current_precision() in ("float32", "tf32x3")
    if exact:
        return "exact products are faster in PyTorch, beside the native kernels"
    if text.features.shape[0] * len(video.rows) < _MANY_PAIRS:
        return f"native is faster below {_MANY_PAIRS} pairs"
    return None


def _direction_slower(unit_coefficients: Tensor, *others: Any) -> str | None:
    if current_precision() != "bfloat16" and _native_runs(unit_coefficients.device.type):
        return "native is faster but in bfloat16"
    return None


def _no_float64(first: Tensor, *others: Any) -> str | None:
    return "its kernels have no float64" if first.dtype == torch.float64 else None


def _hidden_tiles(precision: str) -> TileKernels:
    from garevla.kernels.hidden.tiles import TritonTiles

    return TritonTiles(precision)


def _hidden_too_wide(pairs: HiddenPairs, *others: Any) -> str | None:
    widths = {"frames": pairs.factors["frames"].shape[1]}
    if "keys" in pairs.factors:
        widths["heads · frames"] = pairs.factors["keys"].shape[1]
    for name, width in widths.items():
        if width > LARGEST_HIDDEN:
            return f"{name} of its videos may be at most {LARGEST_HIDDEN}"
    return _no_float64(pairs.text)


def _needs_increments(pairs: HiddenPairs, pool_temperature: float, *others: Any) -> str | None:
    if others and others[-1] is not None:
        return "the exact directional diversity is left to plain PyTorch"
    return None


register_backend(
    Backend(
        NAME,
        unavailable=unavailable,
        operations={
            **{
                name: Implementation(function, refuses=_too_wide, disadvises=_pairs_slower)
                for name, function in pair_operations(
                    NAMESPACE, constants=lambda: (current_precision(),)
                ).items()
            },
            **{
                name: Implementation(function, _hidden_too_wide, _needs_increments)
                for name, function in hidden_operations(NAME, _hidden_tiles).items()
            },
            "direction": Implementation(direction, _no_float64, _direction_slower),
            # Small products of PyTorch's: there is nothing to gain.
            "sampled_direction": Implementation(sampled_direction),
            "frame_alignment": Implementation(frame_alignment, refuses=_no_float64),
        },
        preference={"cuda": 2},
    )
)
