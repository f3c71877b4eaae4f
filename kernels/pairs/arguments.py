"""The arguments of the pair operators, checked and prepared for the kernels."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from garevla.increments.low_rank.factors import PAIR_FACTORS, factor_sizes
from garevla.kernels.backend import LARGEST_ATTENTION
from garevla.kernels.configs import INPUT_PRECISIONS, LaunchConfig, check_precision
from garevla.kernels.operands import as_operand
from garevla.kernels.pairs.configs import architecture, gram_rows, pair_config


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
    mean_frame: Tensor  # (B, D) v̄, centered
    mean: Tensor  # (B) of v̄ over D
    variance: Tensor  # (B) of v̄ over D
    value_gram: Tensor  # (B, H·F, H·F)
    hidden_gram: Tensor  # (B, H·F+1, H·F+1)
    basis_gram: Tensor  # (B, K, K)
    frame_gram: Tensor  # (B, F, F)
    basis_frame: Tensor  # (B, K, F)


class PairConstants(NamedTuple):
    """What a pair kernel knows at compilation; its argument TILE."""

    DIM: Any
    HEADS: Any
    FRAMES: Any
    GAP_EPS: Any
    VALUE_EPS: Any
    HIDDEN_EPS: Any
    TEMPERATURE: Any
    TINY: Any  # squares below it count as zero
    K_PAD: Any  # columns of a video's basis: K up to a power of two
    F_PAD: Any  # columns of its frames, likewise
    BLOCK_A: Any  # texts of a tile
    VIDEOS: Any  # videos of a tile
    GROUP: Any  # tiles that share a tile's texts
    BLOCK_D: Any  # features multiplied at a time
    GRAM_ROWS: Any  # rows of the Gram matrices multiplied at a time
    SUMS_HELD: Any  # whether registers hold the adjoint's sums of outer products
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
        check_precision(precision)
        if len(factors) != len(PAIR_FACTORS):
            raise ValueError(f"factors must be {len(PAIR_FACTORS)} tensors, got {len(factors)}")
        named = dict(zip(PAIR_FACTORS, factors, strict=True))
        if text.dim() != 2:
            raise ValueError(f"text must have shape (A, D), got {tuple(text.shape)}")
        if named["key_bias"].dim() != 3:
            shape = tuple(named["key_bias"].shape)
            raise ValueError(f"key_bias must have shape (B, H, F), got {shape}")
        if text.dtype not in (torch.float32, torch.float64):
            raise TypeError(f"text must be float32 or float64, got {text.dtype}")
        self.num_texts, self.dim = text.shape
        self.num_videos, self.heads, self.frames = named["key_bias"].shape
        sizes = factor_sizes(named["key_bias"].shape, self.dim)
        self.attention, self.basis, self.num_rows = (sizes[letter] for letter in "NKR")
        if min(self.num_texts, self.num_videos, self.attention, self.dim) == 0:
            raise ValueError("the pair operators need a text and a video at least")
        if self.attention > LARGEST_ATTENTION:
            raise ValueError(
                f"heads · frames must be at most {LARGEST_ATTENTION} for the triton backend, got "
                f"{self.attention}: use another backend"
            )
        self.text = text.contiguous()
        self.factors = {
            name: self.check(
                name,
                named[name],
                tuple(sizes[letter] for letter in letters),
                torch.bool if name == "frame_mask" else text.dtype,
            )
            for name, letters in PAIR_FACTORS.items()
        }
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
        factors = dict(self.factors)
        rows, mask = factors["rows"], factors.pop("frame_mask")
        weight = mask / mask.sum(1, keepdim=True).to(rows.dtype)
        frames = rows[:, self.attention : self.attention + self.frames]
        factors |= {
            "rows": as_operand(rows, self.precision),
            "frame_weight": weight,
            # Padding may hold anything.
            "mean": torch.where(mask, frames.mean(2) * weight, 0.0).sum(1),
            "variance": factors["mean_frame"].square().mean(1),
        }
        return Videos(**factors)

    def check(
        self, name: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype
    ) -> Tensor:
        """The contiguous tensor. Raises unless it lies beside the texts and has this shape and
        type."""
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
        """A new tensor beside the texts, of their type."""
        return self.text.new_empty(shape)

    def config(self, kernel: str) -> LaunchConfig:
        """The committed configuration of a kernel for this call."""
        arch = architecture(self.text.device)
        precision = "float64" if self.text.dtype == torch.float64 else self.precision
        return pair_config(kernel, precision, triton.next_power_of_2(self.basis), arch)

    def constants(self, config: LaunchConfig) -> PairConstants:
        """The compile-time constants of a kernel in this configuration."""
        tiny = torch.finfo(self.text.dtype).tiny
        gap_eps, value_eps, hidden_eps = self.layer_norm_eps
        precision = INPUT_PRECISIONS[self.precision]
        columns = max(16, triton.next_power_of_2(self.basis))
        constants = PairConstants(
            DIM=self.dim,
            HEADS=self.heads,
            FRAMES=self.frames,
            GAP_EPS=gap_eps,
            VALUE_EPS=value_eps,
            HIDDEN_EPS=hidden_eps,
            TEMPERATURE=self.pool_temperature,
            TINY=tiny,
            K_PAD=columns,
            F_PAD=max(16, triton.next_power_of_2(self.frames)),
            BLOCK_A=config.rows,
            VIDEOS=config.columns,
            GROUP=config.tiles,
            BLOCK_D=config.reduction,
            GRAM_ROWS=gram_rows(columns * config.columns),
            SUMS_HELD=columns * config.columns == 16,
            PRODUCTS=precision.products,
            FORMS=precision.forms,
        )
        return PairConstants(*map(tl.constexpr, constants))


def check_statistics(
    arguments: PairArguments, logit_scale: Tensor, targets: Tensor, samples: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The statistics' further arguments, contiguous; the scale in the texts' type.

    Raises unless shapes and types fit; an index out of range stops the device later.
    """
    if logit_scale.numel() != 1:
        raise ValueError(f"logit_scale must be one number, got shape {tuple(logit_scale.shape)}")
    texts = arguments.num_texts
    logit_scale = logit_scale.to(arguments.text).reshape(1)
    targets = arguments.check("targets", targets, (texts,), torch.int64)
    if samples is not None:
        if samples.dim() != 2:
            raise ValueError(f"samples must have shape (A, n), got {tuple(samples.shape)}")
        shape = (texts, samples.shape[1])
        samples = arguments.check("samples", samples, shape, torch.int64)
    for name, indices in (("targets", targets), ("samples", samples)):
        if indices is not None and indices.numel() > 0:
            fits = (indices >= 0) & (indices < arguments.num_videos)
            # Does not wait for the device; a wrong index would read nothing but leave garbage.
            torch._assert_async(fits.all(), f"{name} must be in [0, {arguments.num_videos})")
    return logit_scale, targets, samples
