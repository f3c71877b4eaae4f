"""The ``triton`` backend: what runs where, and the pair operation's functions.

Importing this does not import triton: that happens when the backend is first asked whether it can
run (:func:`supports`), so that the core needs torch alone. The operators are registered with
torch.library (namespace ``garevla_triton``): they work under autograd, torch.compile and autocast,
on the current device and stream.
"""

from __future__ import annotations

import functools
import importlib.util
import os

import torch
from torch import Tensor

from garevla.increments.low_rank.factors import TextFactors, VideoFactors
from garevla.ops.eager.direction import direction as eager_direction
from garevla.ops.eager.pairs import PairTerms
from garevla.ops.eager.statistics import PairStatistics
from garevla.ops.precision import current_precision

OLDEST_CAPABILITY = (8, 0)
LARGEST_ATTENTION = 126
"""The most heads · frames: with the two constants a basis tile of 128 columns."""
AUTO_ATTENTION = 62
"""A basis tile of 64 columns. Twice as wide it does not fit into registers (docs/kernels.md)."""


@functools.cache
def _unusable(device_type: str) -> str | None:
    """Why Triton itself cannot be used, or None."""
    try:
        import garevla.kernels.pairs.operators  # noqa: F401

        if device_type == "cuda":
            # Compiles a little C, for which there must be a compiler and Python's headers.
            from triton.runtime import driver

            driver.active.get_current_target()
    except Exception as error:
        return f"triton cannot be used: {type(error).__name__}: {error}"
    return None


def supports(device: torch.device) -> str | None:
    """Return why the backend cannot run on a device, or None where it can."""
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


def pair_similarity(text: TextFactors, video: VideoFactors, pool_temperature: float) -> Tensor:
    """As :func:`garevla.ops.eager.pairs.pair_similarity`; nothing but the scores is kept."""
    return torch.ops.garevla_triton.pair_similarity(*_arguments(text, video, pool_temperature))


def pair_terms(text: TextFactors, video: VideoFactors, pool_temperature: float) -> PairTerms:
    """As :func:`garevla.ops.eager.pairs.pair_terms`."""
    arguments = _arguments(text, video, pool_temperature)
    return PairTerms(*torch.ops.garevla_triton.pair_terms(*arguments))


def pair_statistics(
    text: TextFactors,
    video: VideoFactors,
    pool_temperature: float,
    logit_scale: Tensor,
    targets: Tensor,
    samples: Tensor | None = None,
) -> PairStatistics:
    """As the eager operation, tile by tile: O(A + B·K²) memory and a workspace of fixed
    size beyond the inputs, forward and backward; no A × B tensor."""
    arguments = _arguments(text, video, pool_temperature)
    row, column, target, _, variance, mean, covariance, sampled = (
        torch.ops.garevla_triton.pair_statistics(*arguments, logit_scale, targets, samples)
    )
    return PairStatistics(
        row, column, target, variance, mean, covariance, None if samples is None else sampled
    )


def direction(unit_coefficients: Tensor, basis: Tensor, alpha: float) -> Tensor:
    """As the eager operation, which computes float64: the kernels have none."""
    if basis.dtype == torch.float64:
        return eager_direction(unit_coefficients, basis, alpha)
    from garevla.kernels.direction import direction as triton_direction

    return triton_direction(unit_coefficients, basis, alpha, current_precision())


def _arguments(
    text: TextFactors, video: VideoFactors, pool_temperature: float
) -> tuple[Tensor, list[Tensor], float, list[float], str]:
    rows, _, *factors, layer_norm_eps = video
    return (
        text.features,
        [rows, *factors],
        pool_temperature,
        list(layer_norm_eps),
        current_precision(),
    )
