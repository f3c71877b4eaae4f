"""Matrix products of float32 on a CPU, by the fastest exact library that PyTorch brings.

PyTorch multiplies with MKL, which has no AVX-512 code for AMD's processors; oneDNN, which is in
PyTorch too, has (``python -m benchmarks.products`` measures both). It is taken from Zen 5 on: Zen 4
runs a 512-bit instruction in two halves, and both libraries reach what it can. Where the preset is
``"bfloat16"`` and PyTorch cannot round operands on this CPU, but ``native`` can, products are
native's. Everywhere else, and for every other dtype, device and precision, they are PyTorch's own.
The C++ of ``native`` does the same: told of oneDNN by garevla/ops/native.py, of rounding from here.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from garevla.ops.precision import current_precision, follow, use_precision
from garevla.utils.compiling import constant_when_compiled

VARIABLE = "GAREVLA_CPU_PRODUCTS"
LIBRARIES = ("torch", "onednn")

_ZEN_5_FAMILY = 26

LEAST_WORK = 2**22
"""Multiply-adds from which a faster product outweighs its call (oneDNN's some 20 to 60 µs)."""


@constant_when_compiled
def library() -> str:
    """``"torch"`` or ``"onednn"``: who multiplies large float32 matrices on this CPU.

    A rule, so that every run on a machine takes the same one: oneDNN on AMD's processors with
    AVX-512 from Zen 5 on. The environment variable ``GAREVLA_CPU_PRODUCTS`` overrides it.

    Raises:
        ValueError: the variable names no library.
        RuntimeError: it names oneDNN, and this PyTorch's cannot be used.
    """
    return _choose()


@cache
def _choose() -> str:
    given = os.environ.get(VARIABLE)
    if given is None:
        vendor, family = _processor()
        preferred = (
            vendor == "AuthenticAMD" and family >= _ZEN_5_FAMILY and _capability() == "AVX512"
        )
        return "onednn" if preferred and onednn_unavailable() is None else "torch"
    if given not in LIBRARIES:
        raise ValueError(f"{VARIABLE} must be one of {LIBRARIES}, got {given!r}")
    if given == "onednn" and (reason := onednn_unavailable()) is not None:
        raise RuntimeError(f"{VARIABLE} is 'onednn', but {reason}")
    return given


@cache
def onednn_unavailable() -> str | None:
    """Why oneDNN's product cannot be called, or None."""
    if not torch.backends.mkldnn.is_available():
        return "this PyTorch was built without oneDNN"
    # An operator of PyTorch's compiler, not of its public interface: tried before it is trusted.
    x = torch.arange(15.0).view(3, 5)
    try:
        product = onednn_linear(x, x[:2], torch.ones(2))
    except (AttributeError, RuntimeError, TypeError) as error:
        return f"its operator in PyTorch {torch.__version__} cannot be called: {error}"
    if not torch.equal(product, F.linear(x, x[:2], torch.ones(2))):
        return f"its operator in PyTorch {torch.__version__} does something else"
    return None


_native_rounds = False
"""Whether ``native`` rounds operands of large products at present."""


def _follow_precision(preset: str) -> None:
    global _native_rounds
    rounds = preset == "bfloat16"
    if rounds != _native_rounds and (round_products := _native_rounding()) is not None:
        round_products(rounds)
        _native_rounds = rounds


@cache
def _native_rounding() -> Callable[[bool], Any] | None:
    """Switches it on and off, where native can and PyTorch, asked for it, does not."""
    # This loads the library, which is of no use to those who never round.
    from garevla.ops.native_library import UNAVAILABLE, c_function

    if UNAVAILABLE is not None:
        return None
    switch, torch_rounds = c_function("garevla_round_products"), c_function("garevla_torch_rounds")
    switch.restype = torch_rounds.restype = ctypes.c_bool
    return switch if switch(False) and not torch_rounds() else None


follow(_follow_precision)


def rounds_to_bfloat16() -> bool:
    """Whether ``use_precision("bfloat16")`` rounds operands of large products on this CPU.

    PyTorch leaves that to oneDNN, which takes its exact float32 product where the processor has no
    AMX. With AVX512-BF16, ``native`` does it.
    """
    x, one = torch.full((256, 256), 1 + 2**-10), torch.eye(256)
    with use_precision("bfloat16"):
        return not torch.equal(linear(x, one), x)


def onednn_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """As :func:`torch.nn.functional.linear`, without gradients."""
    # For weights with gaps in memory oneDNN has its reference code alone, a thousand times slower.
    if not (weight.is_contiguous() or weight.mT.is_contiguous()):
        weight = weight.contiguous()
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """As :func:`torch.nn.functional.linear`: x (…, D), weight (E, D), bias (E,) → (…, E)."""
    if _other_linear(x, weight) is not None:
        return torch.ops.garevla_products.linear(x, weight, bias)
    return F.linear(x, weight, bias)


def linear_into(out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """:func:`linear` of x (N, D), in the memory of ``out`` (N, E) unless a library which takes its
    own is faster; without gradients."""
    if (other := _other_linear(x, weight)) is not None:
        return other(x, weight, bias)
    if bias is None:
        return torch.mm(x, weight.mT, out=out)
    return torch.addmm(bias, x, weight.mT, out=out)


def batched(left: Tensor, right: Tensor) -> Tensor:
    """Products (N, P, R) of left (N, P, Q) and right (N, Q, R), one after the other where each is
    large."""
    if len(left) and _other_linear(left[0], right[0].mT) is not None:
        return torch.stack([linear(x, y.mT) for x, y in zip(left, right, strict=True)])
    return torch.bmm(left, right)


_Linear = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def _other_linear(x: Tensor, weight: Tensor) -> _Linear | None:
    """Who multiplies in PyTorch's place, if anybody."""
    if (
        x.dtype != torch.float32
        or weight.dtype != torch.float32
        or x.device.type != "cpu"
        or x.dim() < 2
        or x.numel() * weight.shape[0] < LEAST_WORK
    ):
        return None
    if _native_rounds:
        return _rounded_linear
    # In that precision PyTorch's product takes the processor's instructions, where it has any.
    exact = current_precision() != "bfloat16"
    return onednn_linear if exact and library() == "onednn" else None


def _rounded_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    product = torch.ops.garevla_cpu.product_of_rounded(x.flatten(0, -2), weight.mT)
    if bias is not None:
        product += bias
    return product.view(*x.shape[:-1], -1)


@torch.library.custom_op(
    "garevla_products::linear",
    mutates_args=(),
    device_types="cpu",
    schema="(Tensor x, Tensor weight, Tensor? bias) -> Tensor",
)
def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    # Compiled code may run in another precision than it was compiled in.
    return (_other_linear(x, weight) or F.linear)(x, weight, bias)


@_linear.register_fake
def _fake_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


def _save(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None], output: Tensor) -> None:
    x, weight, _ = inputs
    ctx.save_for_backward(x, weight)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight = ctx.saved_tensors
    of_x, of_weight, of_bias = ctx.needs_input_grad
    rows = grad.flatten(0, -2)
    return (
        linear(grad, weight.mT) if of_x else None,
        linear(rows.mT, x.flatten(0, -2).mT) if of_weight else None,
        rows.sum(dim=0) if of_bias else None,
    )


_linear.register_autograd(_backward, setup_context=_save)


def _capability() -> str:
    return torch.backends.cpu.get_cpu_capability()


def _processor() -> tuple[str, int]:
    """Vendor and family, where the operating system has a file that says so."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return "", 0
    values = {name.strip(): value.strip() for name, _, value in (x.partition(":") for x in lines)}
    return values.get("vendor_id", ""), int(values.get("cpu family", 0))
