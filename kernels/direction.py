"""The directional diversity in one flash-attention-like pass over each text's Gram matrix.

For each text i the cosines of all unit increments Δ̂_ij are needed, A·B² of them, for the mean of
exp(−α(1 − cos)) and as weights of the gradient Σ_k exp(−α(1 − cos_ijk)) Δ̂_ik. The mean is but a
factor of the gradient, so that one pass gives both: a tile of cosines is produced, summed,
multiplied with the increments it came from, and thrown away. Two products of A·B²·D multiply-adds
instead of two and a half (symmetric mean first, then the gradient); for the value alone, half of
one.

Unit increments are formed in global memory, a bounded number of texts at a time. To form them on
the fly would read K·D numbers of the basis per pair and tile instead of D, and do the K·D
multiply-adds again for each of the B/64 tiles; formed once, they cost K/B of a cubic product
(K = 14: 1.4 % at B = 1024), and 2·B·D bytes (1 MB) stay in the L2 cache while their text is worked
on. This product and the projections of the gradient on to coefficients and basis, as thin, are
batched matrix products and left to PyTorch.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from garevla.kernels import configs
from garevla.kernels.configs import (
    DIRECTION_GRADIENT,
    DIRECTION_VALUE,
    INPUT_PRECISIONS,
    LARGEST_GRID,
    LaunchConfig,
    along_features,
)
from garevla.kernels.launching import launch
from garevla.kernels.operands import as_operand, check_operands, load_operand
from garevla.ops.derivatives import first_derivative_only

LOG_FLOOR = 1e-8
_LOG2_E = 1.4426950408889634


def direction(
    unit_coefficients: Tensor, basis: Tensor, alpha: float, precision: str = "float32"
) -> Tensor:
    """As the eager operation: mean_i log(mean_jk exp(−α(1 − cos)) + 1e-8).

    Bit for bit repeatable. Keeps A·B·K + B·K·D numbers for the backward pass.

    Args:
        unit_coefficients: (B, K, A) float32, of unit increments Δ̂_ij.
        basis: (B, K, D) float32.
        alpha: α.
        precision: of the cubic products: float32, tf32x3, tf32 or bfloat16.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape, device or value.
    """
    with_gradient = torch.is_grad_enabled() and (
        unit_coefficients.requires_grad or basis.requires_grad
    )
    return torch.ops.garevla_triton.direction(
        unit_coefficients, basis, alpha, with_gradient, precision
    )[0]


class DirectionConstants(NamedTuple):
    """What a kernel of the direction knows at compilation; its argument TILE."""

    DIM: int  # of the increments
    ROWS: int  # videos of a tile
    COLUMNS: int  # videos it meets at a time
    REDUCTION: int  # features of the cosines multiplied at a time
    OUTPUT: int  # features of the gradient per program
    PRECISION: str  # of tl.dot


def _constants(config: LaunchConfig, dim: int, precision: str) -> DirectionConstants:
    return DirectionConstants(
        DIM=dim,
        ROWS=config.rows,
        COLUMNS=config.columns,
        REDUCTION=along_features(config.reduction, dim),
        OUTPUT=along_features(config.output, dim),
        PRECISION=INPUT_PRECISIONS[precision].products,
    )


@triton.jit
def _cosines(
    directions,  # (B, num_texts, DIM) operands, from one text on
    rows,  # (ROWS,)
    columns,  # (COLUMNS,)
    num_videos,
    num_texts,
    TILE: tl.constexpr,  # DirectionConstants
):
    """Dot products (ROWS, COLUMNS) of a text's increments."""
    # Not tl.zeros: in Triton 3.6 it fails on sizes from a tuple.
    cosine = tl.full([TILE.ROWS, TILE.COLUMNS], 0.0, tl.float32)
    stride = num_texts * TILE.DIM
    for start in range(0, TILE.DIM, TILE.REDUCTION):
        features = start + tl.arange(0, TILE.REDUCTION)
        left = load_operand(directions, rows, rows < num_videos, stride, features, TILE.DIM)
        right = load_operand(directions, columns, columns < num_videos, stride, features, TILE.DIM)
        cosine = tl.dot(left, tl.trans(right), cosine, input_precision=TILE.PRECISION)
    return cosine


# Sizes of the batch are not specialized: another size is no reason to compile again.
@triton.jit(do_not_specialize=["num_videos", "num_texts"])
def direction_value_kernel(
    directions,  # (B, num_texts, DIM) operands: unit increments
    sums,  # (num_texts, pairs of tiles) float32, out
    num_videos,
    num_texts,  # of this launch
    exponent,  # α log2 e
    TILE: tl.constexpr,  # DirectionConstants
):
    """Sum of exp(−α(1 − cos)) over one square tile on or below a text's diagonal, and its mirror.

    Program (pair of tiles, text). A batch of symmetric products: A·B²·D/2 multiply-adds and A·B²/2
    exponentials; 2·A·B·D bytes from memory (bfloat16). A = B = 1024, D = 512 on an H200: 0.7 ms of
    tensor cores (790 TFLOP/s), 0.25 ms of memory (4.3 TB/s). A tile reads 256 KB from L2 for 16.8
    million operations, 64 a byte: L2 is the bound unless it delivers 12 TB/s.
    """
    pair, text = tl.program_id(0), tl.program_id(1)
    # Tiles of the triangle row by row; the root may be off by one.
    row_tile = ((tl.sqrt(8.0 * pair + 1.0) - 1.0) * 0.5).to(tl.int32)
    row_tile = tl.where(row_tile * (row_tile + 1) // 2 > pair, row_tile - 1, row_tile)
    row_tile = tl.where((row_tile + 1) * (row_tile + 2) // 2 <= pair, row_tile + 1, row_tile)
    column_tile = pair - row_tile * (row_tile + 1) // 2
    rows = row_tile * TILE.ROWS + tl.arange(0, TILE.ROWS)
    columns = column_tile * TILE.COLUMNS + tl.arange(0, TILE.COLUMNS)
    directions += text.to(tl.int64) * TILE.DIM
    cosine = _cosines(directions, rows, columns, num_videos, num_texts, TILE)
    inside = (rows < num_videos)[:, None] & (columns < num_videos)[None, :]
    kernel = tl.where(inside, tl.exp2((cosine - 1.0) * exponent), 0.0)
    weight = tl.where(row_tile == column_tile, 1.0, 2.0)
    tl.store(sums + text.to(tl.int64) * tl.num_programs(0) + pair, weight * tl.sum(kernel))


@triton.jit(do_not_specialize=["num_videos", "num_texts"])
def direction_gradient_kernel(
    directions,  # (B, num_texts, DIM) operands: unit increments
    gradient,  # (B, num_texts, DIM) float32, out: Σ_k exp(−α(1 − cos_jk)) Δ̂_k
    sums,  # (num_texts, tiles) float32, out
    num_videos,
    num_texts,  # of this launch
    exponent,  # α log2 e
    TILE: tl.constexpr,  # DirectionConstants
):
    """Sums of exp(−α(1 − cos)) and the gradient but for a factor, for one tile of a text's videos.

    Program (tile, text, part of the features). 2·A·B²·D multiply-adds, A·B² exponentials; with
    D > OUTPUT the cosines are computed once per part. 2·A·B·D bytes read from memory (bfloat16) and
    4·A·B·D written. A = B = 1024, D = 512 on an H200: 2.8 ms of tensor cores (790 TFLOP/s), 0.75 ms
    of memory (4.3 TB/s). Two tiles that meet read 192 KB from L2 for 8.4 million operations, 43 a
    byte, for which it would have to deliver 18 TB/s: L2 is the bound. To keep the own tile in
    shared memory would save a third, but spills registers on sm_90.
    """
    tile, text, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    directions += text.to(tl.int64) * TILE.DIM
    gradient += text.to(tl.int64) * TILE.DIM
    stride = num_texts * TILE.DIM
    rows = tile * TILE.ROWS + tl.arange(0, TILE.ROWS)
    outputs = part * TILE.OUTPUT + tl.arange(0, TILE.OUTPUT)
    total = tl.full([TILE.ROWS, TILE.OUTPUT], 0.0, tl.float32)
    row_sum = tl.full([TILE.ROWS], 0.0, tl.float32)
    for start in range(0, num_videos, TILE.COLUMNS):
        columns = start + tl.arange(0, TILE.COLUMNS)
        cosine = _cosines(directions, rows, columns, num_videos, num_texts, TILE)
        others = load_operand(directions, columns, columns < num_videos, stride, outputs, TILE.DIM)
        kernel = tl.exp2((cosine - 1.0) * exponent)
        kernel = tl.where((columns < num_videos)[None, :], kernel, 0.0)
        row_sum += tl.sum(kernel, axis=1)
        total = tl.dot(kernel.to(others.dtype), others, total, input_precision=TILE.PRECISION)
    inside = rows < num_videos
    at = rows.to(tl.int64)[:, None] * stride + outputs[None, :]
    tl.store(gradient + at, total, mask=inside[:, None] & (outputs < TILE.DIM)[None, :])
    if part == 0:
        tile_sum = tl.sum(tl.where(inside, row_sum, 0.0))
        tl.store(sums + text.to(tl.int64) * tl.num_programs(0) + tile, tile_sum)


def _sums(directions: Tensor, alpha: float, precision: str) -> Tensor:
    """Sums over tiles (a, ·) of exp(−α(1 − cos)), for increments (B, a, D)."""
    videos, texts, dim = directions.shape
    config = DIRECTION_VALUE[precision]
    tiles = triton.cdiv(videos, config.rows)
    sums = directions.new_empty(texts, tiles * (tiles + 1) // 2, dtype=torch.float32)
    launch(
        direction_value_kernel,
        (sums.shape[1], texts),
        directions=directions,
        sums=sums,
        num_videos=videos,
        num_texts=texts,
        exponent=alpha * _LOG2_E,
        TILE=_constants(config, dim, precision),
        **config.options(),
    )
    return sums


def _sums_and_gradient(directions: Tensor, alpha: float, precision: str) -> tuple[Tensor, Tensor]:
    """As :func:`_sums`, and Σ_k exp(−α(1 − cos_jk)) Δ̂_k as (B, a, D)."""
    videos, texts, dim = directions.shape
    config = DIRECTION_GRADIENT[precision]
    constants = _constants(config, dim, precision)
    tiles = triton.cdiv(videos, config.rows)
    sums = directions.new_empty(texts, tiles, dtype=torch.float32)
    gradient = torch.empty_like(directions, dtype=torch.float32)
    launch(
        direction_gradient_kernel,
        (tiles, texts, triton.cdiv(dim, constants.OUTPUT)),
        directions=directions,
        gradient=gradient,
        sums=sums,
        num_videos=videos,
        num_texts=texts,
        exponent=alpha * _LOG2_E,
        TILE=constants,
        **config.options(),
    )
    return sums, gradient


def direction_and_gradient(
    unit: Tensor,  # (B, K, A)
    basis: Tensor,  # (B, K, D)
    alpha: float,
    with_gradient: bool,
    precision: str,
) -> tuple[Tensor, Tensor, Tensor]:  # 0-d; (B, K, A) and (B, K, D), or empty
    """What the operator does: the value, and the gradients of both arguments where wanted."""
    _check(unit, basis, precision)
    with torch.autocast(unit.device.type, enabled=False):
        return _direction_and_gradient(unit, basis, alpha, with_gradient, precision)


def _direction_and_gradient(
    unit: Tensor, basis: Tensor, alpha: float, with_gradient: bool, precision: str
) -> tuple[Tensor, Tensor, Tensor]:
    videos, _, texts = unit.shape
    dim = basis.shape[2]
    # A program of the grid's second axis has one text.
    step = max(1, min(configs.DIRECTION_INCREMENTS // (videos * dim), LARGEST_GRID))
    total = unit.new_zeros(())
    unit_gradient = unit.new_empty(unit.shape if with_gradient else 0)
    basis_gradient = basis.new_zeros(basis.shape if with_gradient else 0)
    for start in range(0, texts, step):
        chunk = unit[:, :, start : start + step]
        directions = as_operand(chunk.mT @ basis, precision)  # (B, a, D)
        if not with_gradient:
            sums = _sums(directions, alpha, precision)
            total += (sums.sum(dim=1) / videos**2 + LOG_FLOOR).log().sum()
            continue
        sums, gradient = _sums_and_gradient(directions, alpha, precision)
        mean = sums.sum(dim=1) / videos**2 + LOG_FLOOR
        total += mean.log().sum()
        # The kernel is symmetric: each direction meets it as row and as column.
        slope = 2 * alpha / (videos**2 * texts * mean)  # (a,)
        unit_gradient[:, :, start : start + step] = (basis @ gradient.mT) * slope
        basis_gradient += (chunk * slope) @ gradient
    return total / texts, unit_gradient, basis_gradient


_direction = torch.library.custom_op(
    "garevla_triton::direction", direction_and_gradient, mutates_args=()
)


@_direction.register_fake
def _(
    unit: Tensor, basis: Tensor, alpha: float, with_gradient: bool, precision: str
) -> tuple[Tensor, Tensor, Tensor]:
    _check(unit, basis, precision)
    shapes = (unit.shape, basis.shape) if with_gradient else ((0,), (0,))
    value, unit_gradient, basis_gradient = (unit.new_empty(shape) for shape in ((), *shapes))
    return value, unit_gradient, basis_gradient


def _check(unit: Tensor, basis: Tensor, precision: str) -> None:
    check_operands(precision, unit_coefficients=unit, basis=basis)
    if unit.dim() != 3 or 0 in unit.shape:
        raise ValueError(
            f"unit_coefficients must have shape (B, K, A), not empty, got {tuple(unit.shape)}"
        )
    if basis.dim() != 3 or basis.shape[:2] != unit.shape[:2] or basis.shape[2] == 0:
        raise ValueError(
            f"basis must have shape {(*unit.shape[:2], 'D')}, not empty, got {tuple(basis.shape)}"
        )


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*output[1:])


def _backward(ctx: Any, grad_value: Tensor, *_: Any) -> tuple[Any, ...]:
    first_derivative_only("the triton backend")
    unit_gradient, basis_gradient = ctx.saved_tensors
    return grad_value * unit_gradient, grad_value * basis_gradient, None, None, None


_direction.register_autograd(_backward, setup_context=_save)
