"""The arguments of the pair operators, checked and prepared for the kernels."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from garevla.kernels.backend import LARGEST_ATTENTION
from garevla.kernels.configs import (
    PRECISIONS,
    PROGRAMS,
    TileConfig,
    architecture,
    autotuning,
    candidates,
    tile_config,
)
from garevla.kernels.operands import as_operand

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


class Texts(NamedTuple):
    """The texts, as kernels take them."""

    features: Tensor  # (A, D)
    operand: Tensor  # (A, D) in the type of the products
    mean: Tensor  # (A) over D
    variance: Tensor  # (A) over D
    squared_norm: Tensor  # (A)


class Videos(NamedTuple):
    """The videos' factors, as kernels take them."""

    rows: Tensor  # (B, R, D) keys, frames, basis, in the type of the products
    frame_weight: Tensor  # (B, F) one over the number of valid frames, 0 for padding
    key_offset: Tensor  # (B, H·F)
    key_bias: Tensor  # (B, H·F)
    mean_frame: Tensor  # (B, D) v̄, centred
    mean: Tensor  # (B) of v̄ over D
    variance: Tensor  # (B) of v̄ over D
    value_gram: Tensor  # (B, H·F, H·F)
    hidden_gram: Tensor  # (B, H·F+1, H·F+1)
    basis_gram: Tensor  # (B, K, K)
    frame_gram: Tensor  # (B, F, F)
    basis_frame: Tensor  # (B, K, F)


class Tile(NamedTuple):
    """The pair kernels' compile-time constants."""

    DIM: Any
    HEADS: Any
    FRAMES: Any
    GAP_EPS: Any
    VALUE_EPS: Any
    HIDDEN_EPS: Any
    TEMPERATURE: Any
    TINY: Any
    INVERSE_TINY: Any  # its inverse root
    K_PAD: Any  # columns of a video's basis: K up to a power of two
    F_PAD: Any  # columns of its frames, likewise
    BLOCK_A: Any  # texts of a tile
    VIDEOS: Any  # videos of a tile
    BLOCK_D: Any  # features multiplied at a time
    PRODUCTS: Any  # input precision of the products with D in it
    FORMS: Any  # and of those with Gram matrices


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
        if self.attention > LARGEST_ATTENTION:
            raise ValueError(
                f"heads · frames must be at most {LARGEST_ATTENTION} for the triton backend, got "
                f"{self.attention}: use another backend"
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
        self.texts = Texts(
            self.text,
            as_operand(self.text, self.precision),
            self.text.mean(1),
            self.text.var(1, correction=0),
            self.text.square().sum(1),
        )
        self.videos = self._videos()

    def _videos(self) -> Videos:
        rows, mask, *others = self.factors.values()
        key_offset, key_bias, mean_frame, *grams = others
        weight = mask / mask.sum(1, keepdim=True).to(rows.dtype)
        frames = rows[:, self.attention : self.attention + self.frames]
        # Padding may hold anything.
        mean = torch.where(mask, frames.mean(2) * weight, 0.0).sum(1)
        variance = mean_frame.square().mean(1)
        operand = as_operand(rows, self.precision)
        return Videos(operand, weight, key_offset, key_bias, mean_frame, mean, variance, *grams)

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

    def config(self, kernel: str) -> TileConfig:
        """The committed configuration of a kernel for this call."""
        arch = architecture(self.text.device)
        return tile_config(kernel, self.precision, triton.next_power_of_2(self.basis), arch)

    def tile(self, config: TileConfig) -> Tile:
        """The compile-time constants of a kernel in this configuration."""
        tiny = torch.finfo(self.text.dtype).tiny
        constants = Tile(
            self.dim,
            self.heads,
            self.frames,
            *self.layer_norm_eps,
            self.pool_temperature,
            tiny,
            tiny**-0.5,
            max(16, triton.next_power_of_2(self.basis)),
            max(16, triton.next_power_of_2(self.frames)),
            config.block_a,
            config.videos,
            config.block_d,
            *PRECISIONS[self.precision],
        )
        return Tile(*map(tl.constexpr, constants))


def segments(num_videos: int, num_texts: int, config: TileConfig) -> tuple[int, int]:
    """How many segments the texts are cut into, and the texts of one (whole tiles)."""
    tiles = triton.cdiv(num_texts, config.block_a)
    groups = triton.cdiv(num_videos, config.videos)
    wanted = min(tiles, max(1, PROGRAMS // groups))
    length = triton.cdiv(tiles, wanted) * config.block_a
    return triton.cdiv(num_texts, length), length


_tuned: dict[tuple[Any, ...], TileConfig] = {}


def tuned(
    arguments: PairArguments, kernel: str, run: Callable[[TileConfig], Any], *, key: str
) -> TileConfig:
    """The committed configuration, or with GAREVLA_AUTOTUNE=1 the fastest of a few, measured once
    for each shape.

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
        _tuned[full_key] = min(timings, key=timings.__getitem__, default=default)
    return _tuned[full_key]
