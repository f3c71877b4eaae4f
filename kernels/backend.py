"""The ``triton`` backend: what runs where, and the pair operation's functions.

Importing this does not import triton: that happens when the backend is first asked whether it can
run (:func:`supports`), so that the core needs torch alone. The operators are registered with
torch.library (namespace ``garevla_triton``): they work under autograd, torch.compile and autocast,
on the current device and stream.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

from garevla.direction import direction as eager_direction
from garevla.factors import TextFactors, VideoFactors
from garevla.pairs import PairTerms
from garevla.statistics import PairStatistics

ENVIRONMENT_VARIABLE = "GAREVLA_TRITON_PRECISION"
PRECISION_NAMES = ("float32", "tf32x3", "tf32", "bfloat16")
OLDEST_CAPABILITY = (8, 0)

_precision: ContextVar[str | None] = ContextVar("garevla_triton_precision", default=None)


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
    import garevla.kernels.operators  # noqa: F401

    return None


@contextmanager
def use_precision(name: str) -> Iterator[None]:
    """Let the pair operators inside take their matrix products in this precision.

    ``"float32"`` (exact), ``"tf32x3"`` (three tensor-core products, close to float32), ``"tf32"``
    or ``"bfloat16"`` operands; sums are in float32 always. Without it the environment variable
    GAREVLA_TRITON_PRECISION decides, then torch.backends.cuda.matmul.allow_tf32.
    """
    _check_precision(name)
    token = _precision.set(name)
    try:
        yield
    finally:
        _precision.reset(token)


# A compiled function keeps the precision of its compilation, as it keeps the backend.
@torch.compiler.assume_constant_result
def precision() -> str:
    """The precision that operators called now would take."""
    name = _precision.get() or os.environ.get(ENVIRONMENT_VARIABLE)
    if name is None:
        return "tf32" if torch.backends.cuda.matmul.allow_tf32 else "float32"
    _check_precision(name)
    return name


def _check_precision(name: str) -> None:
    if name not in PRECISION_NAMES:
        raise ValueError(f"precision must be one of {PRECISION_NAMES}, got {name!r}")


def pair_similarity(text: TextFactors, video: VideoFactors, pool_temperature: float) -> Tensor:
    """As :func:`garevla.pairs.pair_similarity`; nothing but the scores is kept."""
    return torch.ops.garevla_triton.pair_similarity(*_arguments(text, video, pool_temperature))


def pair_terms(text: TextFactors, video: VideoFactors, pool_temperature: float) -> PairTerms:
    """As :func:`garevla.pairs.pair_terms`."""
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
    """As :func:`garevla.statistics.pair_statistics`, tile by tile: O(A + B·K²) memory and a
    workspace of fixed size beyond the inputs, forward and backward; no A × B tensor."""
    arguments = _arguments(text, video, pool_temperature)
    row, column, target, _, variance, mean, covariance, sampled = (
        torch.ops.garevla_triton.pair_statistics(*arguments, logit_scale, targets, samples)
    )
    return PairStatistics(
        row, column, target, variance, mean, covariance, None if samples is None else sampled
    )


def direction(unit_coefficients: Tensor, basis: Tensor, alpha: float) -> Tensor:
    """As :func:`garevla.direction.direction`, which computes float64: the kernels have none."""
    if basis.dtype == torch.float64:
        return eager_direction(unit_coefficients, basis, alpha)
    from garevla.kernels.direction import direction as triton_direction

    return triton_direction(unit_coefficients, basis, alpha, precision())


def _arguments(
    text: TextFactors, video: VideoFactors, pool_temperature: float
) -> tuple[Tensor, list[Tensor], float, list[float], str]:
    rows, _, *factors, layer_norm_eps = video
    return text.features, [rows, *factors], pool_temperature, list(layer_norm_eps), precision()
