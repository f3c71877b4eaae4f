"""The arguments of the pair operators, checked and prepared for the kernels; and how to launch."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
import triton
from torch import Tensor

from garevla.kernels.configs import (
    LARGEST_BASIS,
    PRECISIONS,
    PROGRAMS,
    TileConfig,
    architecture,
    autotuning,
    candidates,
    tile_config,
)

FACTOR_NAMES = (
    "rows",
    "frame_mask",
    "key_offset",
    "key_bias",
    "mean_frame",
    "value_gram",
    "hidden_gram",
    "basis_gram",
    "frame_gram",
    "basis_frame",
)


class PairArguments:
    """Text features and video factors of one call, contiguous; sizes at hand."""

    def __init__(
        self,
        text: Tensor,
        factors: list[Tensor],
        pool_temperature: float,
        layer_norm_eps: list[float],
        precision: str,
    ) -> None:
        if precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {sorted(PRECISIONS)}, got {precision!r}")
        if len(factors) != len(FACTOR_NAMES):
            raise ValueError(f"factors must be {len(FACTOR_NAMES)} tensors, got {len(factors)}")
        named = dict(zip(FACTOR_NAMES, factors, strict=True))
        if text.dim() != 2:
            raise ValueError(f"text must have shape (A, D), got {tuple(text.shape)}")
        if named["key_bias"].dim() != 3:
            shape = tuple(named["key_bias"].shape)
            raise ValueError(f"key_bias must have shape (B, H, F), got {shape}")
        if text.dtype not in (torch.float32, torch.float64):
            raise TypeError(f"text must be float32 or float64, got {text.dtype}")
        self.num_texts, self.dim = text.shape
        self.num_videos, self.heads, self.frames = named["key_bias"].shape
        self.attention = self.heads * self.frames
        self.basis = self.attention + 2
        self.num_rows = 2 * self.attention + self.frames + 2
        if min(self.num_texts, self.num_videos, self.attention, self.dim) == 0:
            raise ValueError("the pair operators need a text and a video at least")
        if self.basis > LARGEST_BASIS:
            raise ValueError(
                f"heads · frames + 2 must be at most {LARGEST_BASIS} for the triton backend, got "
                f"{self.basis}: use another backend"
            )
        of_videos = {
            "rows": (self.num_rows, self.dim),
            "frame_mask": (self.frames,),
            "key_offset": (self.heads, self.frames),
            "key_bias": (self.heads, self.frames),
            "mean_frame": (self.dim,),
            "value_gram": (self.attention, self.attention),
            "hidden_gram": (self.attention + 1, self.attention + 1),
            "basis_gram": (self.basis, self.basis),
            "frame_gram": (self.frames, self.frames),
            "basis_frame": (self.basis, self.frames),
        }
        self.text = text.contiguous()
        for name, shape in of_videos.items():
            dtype = torch.bool if name == "frame_mask" else text.dtype
            self.check(name, named[name], (self.num_videos, *shape), dtype)
        self.factors = {name: tensor.contiguous() for name, tensor in named.items()}
        self.pool_temperature = pool_temperature
        self.layer_norm_eps = layer_norm_eps
        # Exact products are all there is in float64.
        self.precision = "float32" if text.dtype == torch.float64 else precision
        self.text_mean = self.text.mean(1)
        self.squared_norm = self.text.square().sum(1)

    def check(
        self, name: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype
    ) -> Tensor:
        """Raise unless a tensor lies beside the texts and has this shape and type."""
        if tensor.shape != shape:
            raise ValueError(f"{name} must have shape {shape}, got {tuple(tensor.shape)}")
        if tensor.device != self.text.device:
            raise ValueError(f"{name} is on {tensor.device}, text on {self.text.device}")
        if tensor.dtype != dtype:
            raise TypeError(f"{name} must be {dtype}, got {tensor.dtype}")
        return tensor.contiguous()

    def check_optional(
        self, name: str, tensor: Tensor | None, shape: tuple[int, ...]
    ) -> Tensor | None:
        """As :meth:`check`, of a floating-point tensor that may be missing."""
        return None if tensor is None else self.check(name, tensor, shape, self.text.dtype)

    def empty(self, *shape: int) -> Tensor:
        return self.text.new_empty(shape)

    def config(self, family: str) -> TileConfig:
        """The configuration of a kernel for this call."""
        arch = architecture(self.text.device)
        return tile_config(family, self.precision, triton.next_power_of_2(self.basis), arch)

    def operands(self) -> dict[str, Any]:
        """The arguments that all pair kernels take."""
        return {
            "text": self.text,
            "text_mean": self.text_mean,
            "squared_norm": self.squared_norm,
            **self.factors,
            "num_texts": self.num_texts,
        }

    def constants(self) -> dict[str, Any]:
        """The compile-time constants that all pair kernels take, but for the configuration's."""
        gap_eps, value_eps, hidden_eps = self.layer_norm_eps
        products, gram = PRECISIONS[self.precision]
        if products == "bf16" and _recorder is None and self.text.device.type == "cpu":
            products = "bf16 rounding"
        k_pad = max(16, triton.next_power_of_2(self.basis))
        if self.precision == "tf32x3" and k_pad == 16:
            # Small enough for ordinary arithmetic, in fewer registers.
            gram = "ieee"
        return {
            "DIM": self.dim,
            "HEADS": self.heads,
            "FRAMES": self.frames,
            "GAP_EPS": gap_eps,
            "VALUE_EPS": value_eps,
            "HIDDEN_EPS": hidden_eps,
            "TEMPERATURE": self.pool_temperature,
            "TINY": torch.finfo(self.text.dtype).tiny,
            "K_PAD": k_pad,
            "F_PAD": max(16, triton.next_power_of_2(self.frames)),
            "PRODUCT_PRECISION": products,
            "GRAM_PRECISION": gram,
        }


def segments(num_videos: int, num_texts: int, block_a: int) -> tuple[int, int]:
    """How many segments the texts are cut into, and the texts of one (whole tiles)."""
    tiles = triton.cdiv(num_texts, block_a)
    wanted = min(tiles, max(1, PROGRAMS // num_videos))
    length = triton.cdiv(tiles, wanted) * block_a
    return triton.cdiv(num_texts, length), length


Recorder = Callable[[Any, dict[str, Any], dict[str, Any]], None]
_recorder: Recorder | None = None


@contextmanager
def recording(recorder: Recorder) -> Iterator[None]:
    """Hand launches to ``recorder(kernel, arguments, options)`` instead of running them: the tests
    compile them ahead of time for processors that are not there."""
    global _recorder
    _recorder, before = recorder, _recorder
    try:
        yield
    finally:
        _recorder = before


def launch(kernel: Any, grid: tuple[int, ...], config: TileConfig, **arguments: Any) -> None:
    """Run a kernel on the current device and stream."""
    # Fused multiply-adds are asked for: the default is about to change.
    options = {"num_warps": config.num_warps, "num_stages": config.num_stages}
    options["enable_fp_fusion"] = True
    if _recorder is not None:
        _recorder(kernel, arguments, options)
        return
    with device_of(arguments):
        kernel[grid](**arguments, **options)


def device_of(arguments: dict[str, Any]) -> AbstractContextManager[Any]:
    device = next(x.device for x in arguments.values() if isinstance(x, Tensor))
    return torch.cuda.device(device if device.type == "cuda" else -1)


_tuned: dict[tuple[Any, ...], TileConfig] = {}


def tuned(
    arguments: PairArguments, family: str, run: Callable[[TileConfig], Any], *, key: str
) -> TileConfig:
    """The committed configuration, or with GAREVLA_AUTOTUNE=1 the fastest of a few, measured once
    for each shape.

    Another tile size means another order of sums: results then repeat within a process only.
    """
    default = arguments.config(family)
    if not autotuning() or arguments.text.device.type != "cuda":
        return default
    shape = (arguments.num_texts, arguments.num_videos, arguments.dim, arguments.attention)
    full_key = (key, architecture(arguments.text.device), arguments.precision, *shape)
    if full_key not in _tuned:
        timings = {}
        for config in candidates(default):
            try:
                timings[config] = triton.testing.do_bench(functools.partial(run, config), rep=20)
            except (triton.runtime.errors.OutOfResources, triton.CompilationError):
                continue
        _tuned[full_key] = min(timings, key=timings.__getitem__, default=default)
    return _tuned[full_key]
