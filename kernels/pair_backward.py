"""Gradients of the pair operators: of given pair gradients, and of the statistics'.

One kernel recomputes a tile of pairs and applies the adjoint; the gradients of the products t·rows
go through a workspace of fixed size, from which two ordinary matrix products make the texts' and
the rows' gradients.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from garevla.factors import centre
from garevla.kernels.arguments import PairArguments, launch, segments, tuned
from garevla.kernels.arithmetic import (
    load_matrix,
    matmul,
    pair_adjoint,
    score_tile,
    store_matrix,
    weighted_outer,
)
from garevla.kernels.configs import BACKWARD_WORKSPACE, TileConfig
from garevla.kernels.pair_statistics import checked


@triton.jit
def add_matrix(matrix, rows, num_rows, columns, num_columns, values):
    """Add a tile to a matrix that belongs to this program."""
    held = load_matrix(matrix, rows, num_rows, columns, num_columns)
    store_matrix(matrix, rows, num_rows, columns, num_columns, held + values)
    # The next tile may read what another thread has written.
    tl.debug_barrier()


@triton.jit(
    do_not_specialize=["num_texts", "pair_stride", "segment_length", "first_video", "per_text"]
)
def pair_adjoint_kernel(
    grad_products,  # (b, R, a) out: of the products of the b videos and a texts of this chunk
    grad_gap_variance,  # (b, a) out
    grad_squared_norm,  # (b, a) out
    part_key_offset,  # (b, S, H·F) out, and the six that follow: sums over a segment of the texts
    part_key_bias,  # (b, S, H·F)
    part_value_gram,  # (b, S, H·F, H·F) zeros
    part_hidden_gram,  # (b, S, H·F+1, H·F+1) zeros
    part_basis_gram,  # (b, S, K, K) zeros
    part_frame_gram,  # (b, S, F, F) zeros
    part_basis_frame,  # (b, S, K, F) zeros
    part_scale,  # (b, S) out: of logit_scale, or None
    grad_similarity,  # (B, A) from the chunk's first text on, or None
    grad_coefficients,  # (B, K, A) likewise, or None
    grad_norm,  # (B, A) likewise, or None
    logit_scale,  # (1), and all down to grad_sampled, or None: of the statistics
    targets,  # (a)
    row_logsumexp,  # (a)
    grad_row_logsumexp,  # (a)
    grad_target,  # (a)
    norm_mean,  # (a)
    norm_slope,  # (a) gradient of the variance · 2 / (B − 1)
    column_logsumexp,  # (B)
    grad_column_logsumexp,  # (B)
    coefficient_mean,  # (B, K)
    mean_slope,  # (B, K) gradient of the mean / A
    covariance_slope,  # (B, K, K) symmetric: (gradient + its transpose) / (A − 1)
    samples,  # (a, n) or None
    grad_sampled,  # (a, n, K) or None
    text,  # (a, D)
    text_mean,  # (a)
    squared_norm,  # (a)
    rows,  # (B, R, D)
    frame_mask,  # (B, F)
    key_offset,  # (B, H·F)
    key_bias,  # (B, H·F)
    mean_frame,  # (B, D)
    value_gram,  # (B, H·F, H·F)
    hidden_gram,  # (B, H·F+1, H·F+1)
    basis_gram,  # (B, K, K)
    frame_gram,  # (B, F, F)
    basis_frame,  # (B, K, F)
    num_texts,  # a
    pair_stride,  # A
    segment_length,
    first_video,  # of the chunk
    per_text,  # n
    OF_STATISTICS: tl.constexpr,
    SUMS_IN_REGISTERS: tl.constexpr,
    DIM: tl.constexpr,
    HEADS: tl.constexpr,
    FRAMES: tl.constexpr,
    GAP_EPS: tl.constexpr,
    VALUE_EPS: tl.constexpr,
    HIDDEN_EPS: tl.constexpr,
    TEMPERATURE: tl.constexpr,
    TINY: tl.constexpr,
    BLOCK_A: tl.constexpr,
    BLOCK_D: tl.constexpr,
    K_PAD: tl.constexpr,
    F_PAD: tl.constexpr,
    PRODUCT_PRECISION: tl.constexpr,
    GRAM_PRECISION: tl.constexpr,
):
    """A program owns one video and one segment of the texts: recomputes them tile by tile, applies
    the adjoint, and sums what belongs to the video.

    Reads what pair_scores_kernel reads; writes R + 2 numbers a pair into the workspace, of which
    the two products read R once more each (at F = 12 in float32 160 and 304 bytes). Per pair the
    forward operations again and some 22·K² for the adjoint and the Gram matrices' gradients. With
    the products bound by memory: 8 GB at A = B = 4096, 1.8 ms at 4.3 TB/s, half in bfloat16, had
    the kernel itself the tensor cores' pace; like the forward kernel it is nearer to the L2
    cache's. Not yet measured on a GPU.

    Compiled for sm_90 at D = 512, F = 12, of the statistics: 7 KB of shared memory and 182
    registers in float32, 7 KB and 236 in tf32x3, 4 KB and 255 in bfloat16; no spills.
    """
    local = tl.program_id(0).to(tl.int64)
    video = first_video + local
    part = local * tl.num_programs(1) + tl.program_id(1)
    ATTENTION: tl.constexpr = HEADS * FRAMES
    BASIS: tl.constexpr = ATTENTION + 2
    ROWS: tl.constexpr = ATTENTION + FRAMES + BASIS
    dtype = text.dtype.element_ty
    start = tl.program_id(1).to(tl.int64) * segment_length
    k = tl.arange(0, K_PAD)
    f = tl.arange(0, F_PAD)
    part_value_gram += part * (ATTENTION * ATTENTION)
    part_hidden_gram += part * ((ATTENTION + 1) * (ATTENTION + 1))
    part_basis_gram += part * (BASIS * BASIS)
    part_frame_gram += part * (FRAMES * FRAMES)
    part_basis_frame += part * (BASIS * FRAMES)
    sum_offset = tl.zeros((K_PAD,), dtype)
    sum_bias = tl.zeros((K_PAD,), dtype)
    sum_scale = tl.zeros((), dtype)
    if SUMS_IN_REGISTERS:
        sum_value = tl.zeros((K_PAD, K_PAD), dtype)
        sum_hidden = tl.zeros((K_PAD, K_PAD), dtype)
        sum_basis = tl.zeros((K_PAD, K_PAD), dtype)
        sum_frame = tl.zeros((F_PAD, F_PAD), dtype)
        sum_basis_frame = tl.zeros((K_PAD, F_PAD), dtype)
    for first in range(start, min(start + segment_length, num_texts), BLOCK_A):
        texts = first + tl.arange(0, BLOCK_A).to(tl.int64)
        inside = texts < num_texts
        text_frame, text_basis, state = score_tile(
            texts,
            num_texts,
            video,
            text,
            text_mean,
            squared_norm,
            rows,
            frame_mask,
            key_offset,
            key_bias,
            mean_frame,
            value_gram,
            hidden_gram,
            basis_gram,
            frame_gram,
            basis_frame,
            DIM,
            HEADS,
            FRAMES,
            GAP_EPS,
            VALUE_EPS,
            HIDDEN_EPS,
            TEMPERATURE,
            TINY,
            BLOCK_A,
            BLOCK_D,
            K_PAD,
            F_PAD,
            PRODUCT_PRECISION,
            GRAM_PRECISION,
        )

        # The gradients of what the pair gives: similarity, ‖Δ‖ and coefficients.
        given_norm = tl.zeros((BLOCK_A,), dtype)
        given_coefficients = tl.zeros((BLOCK_A, K_PAD), dtype)
        if OF_STATISTICS:
            scale = tl.load(logit_scale)
            logits = state[0] * scale
            # The logsumexps contain the logit, but for rounding.
            row = logits - tl.load(row_logsumexp + texts, mask=inside, other=0.0)
            row = tl.exp(tl.where(row < 0, row, 0.0))
            column = logits - tl.load(column_logsumexp + video)
            column = tl.exp(tl.where(column < 0, column, 0.0))
            grad_logits = row * tl.load(grad_row_logsumexp + texts, mask=inside, other=0.0)
            grad_logits += column * tl.load(grad_column_logsumexp + video)
            grad_logits = tl.where(inside, grad_logits, 0.0)
            sum_scale += tl.sum(grad_logits * state[0], 0)
            matching = inside & (tl.load(targets + texts, mask=inside, other=-1) == video)
            given_similarity = scale * grad_logits
            given_similarity += tl.load(grad_target + texts, mask=matching, other=0.0)
            moved = state[1] - tl.load(norm_mean + texts, mask=inside, other=0.0)
            given_norm += moved * tl.load(norm_slope + texts, mask=inside, other=0.0)
            own_mean = tl.load(coefficient_mean + video * BASIS + k, mask=k < BASIS, other=0.0)
            slope = load_matrix(covariance_slope + video * (BASIS * BASIS), k, BASIS, k, BASIS)
            from_moments = matmul(state[2] - own_mean[None, :], slope, GRAM_PRECISION)
            own_slope = tl.load(mean_slope + video * BASIS + k, mask=k < BASIS, other=0.0)
            from_moments += own_slope[None, :]
            given_coefficients += tl.where(inside[:, None], from_moments, 0.0)
            if samples is not None:
                for n in range(per_text):
                    entries = texts * per_text + n
                    wanted = inside & (tl.load(samples + entries, mask=inside, other=-1) == video)
                    given_coefficients += tl.load(
                        grad_sampled + entries[:, None] * BASIS + k[None, :],
                        mask=wanted[:, None] & (k < BASIS)[None, :],
                        other=0.0,
                    )
        else:
            pairs = video * pair_stride + texts
            given_similarity = tl.zeros((BLOCK_A,), dtype)
            if grad_similarity is not None:
                given_similarity += tl.load(grad_similarity + pairs, mask=inside, other=0.0)
            if grad_norm is not None:
                given_norm += tl.load(grad_norm + pairs, mask=inside, other=0.0)
            if grad_coefficients is not None:
                own = grad_coefficients + video * BASIS * pair_stride
                given_coefficients += tl.load(
                    own + k[None, :] * pair_stride + texts[:, None],
                    mask=inside[:, None] & (k < BASIS)[None, :],
                    other=0.0,
                )

        (
            grad_key,
            grad_frame,
            grad_basis,
            grad_attention_logits,
            grad_gap,
            grad_text,
            value_weight,
            hidden_weight,
            basis_weight,
            frame_weight,
            score_weight,
        ) = pair_adjoint(
            given_similarity,
            given_norm,
            given_coefficients,
            text_frame,
            text_basis,
            state,
            basis_frame + video * (BASIS * FRAMES),
            TEMPERATURE,
            TINY,
            HEADS,
            FRAMES,
            K_PAD,
            F_PAD,
            GRAM_PRECISION,
        )
        tl.store(grad_gap_variance + local * num_texts + texts, grad_gap, mask=inside)
        tl.store(grad_squared_norm + local * num_texts + texts, grad_text, mask=inside)
        own = grad_products + local * ROWS * num_texts + texts[:, None]
        tl.store(
            own + k[None, :] * num_texts,
            grad_key.to(grad_products.dtype.element_ty),
            mask=inside[:, None] & (k < ATTENTION)[None, :],
        )
        tl.store(
            own + (ATTENTION + f)[None, :] * num_texts,
            grad_frame.to(grad_products.dtype.element_ty),
            mask=inside[:, None] & (f < FRAMES)[None, :],
        )
        tl.store(
            own + (ATTENTION + FRAMES + k)[None, :] * num_texts,
            grad_basis.to(grad_products.dtype.element_ty),
            mask=inside[:, None] & (k < BASIS)[None, :],
        )

        coefficients, attention, hidden, pool = state[2], state[4], state[6], state[10]
        sum_offset -= tl.sum(grad_key, 0)
        sum_bias += tl.sum(grad_attention_logits, 0)
        of_value = weighted_outer(value_weight, attention, attention, GRAM_PRECISION)
        of_hidden = weighted_outer(hidden_weight, hidden, hidden, GRAM_PRECISION)
        of_basis = weighted_outer(basis_weight, coefficients, coefficients, GRAM_PRECISION)
        of_frame = weighted_outer(frame_weight, pool, pool, GRAM_PRECISION)
        of_basis_frame = weighted_outer(score_weight, coefficients, pool, GRAM_PRECISION)
        if SUMS_IN_REGISTERS:
            sum_value += of_value
            sum_hidden += of_hidden
            sum_basis += of_basis
            sum_frame += of_frame
            sum_basis_frame += of_basis_frame
        else:
            add_matrix(part_value_gram, k, ATTENTION, k, ATTENTION, of_value)
            add_matrix(part_hidden_gram, k, ATTENTION + 1, k, ATTENTION + 1, of_hidden)
            add_matrix(part_basis_gram, k, BASIS, k, BASIS, of_basis)
            add_matrix(part_frame_gram, f, FRAMES, f, FRAMES, of_frame)
            add_matrix(part_basis_frame, k, BASIS, f, FRAMES, of_basis_frame)
    tl.store(part_key_offset + part * ATTENTION + k, sum_offset, mask=k < ATTENTION)
    tl.store(part_key_bias + part * ATTENTION + k, sum_bias, mask=k < ATTENTION)
    if OF_STATISTICS:
        tl.store(part_scale + part, sum_scale)
    if SUMS_IN_REGISTERS:
        store_matrix(part_value_gram, k, ATTENTION, k, ATTENTION, sum_value)
        store_matrix(part_hidden_gram, k, ATTENTION + 1, k, ATTENTION + 1, sum_hidden)
        store_matrix(part_basis_gram, k, BASIS, k, BASIS, sum_basis)
        store_matrix(part_frame_gram, f, FRAMES, f, FRAMES, sum_frame)
        store_matrix(part_basis_frame, k, BASIS, f, FRAMES, sum_basis_frame)


def pair_terms_backward(
    arguments: PairArguments,
    grad_similarity: Tensor | None,
    grad_coefficients: Tensor | None,
    grad_norm: Tensor | None,
) -> list[Tensor]:
    """Gradients of (text, rows, key_offset, key_bias, mean_frame, value_gram, hidden_gram,
    basis_gram, frame_gram, basis_frame) from the pairs' own."""
    texts, videos, basis = arguments.num_texts, arguments.num_videos, arguments.basis
    check = arguments.check_optional
    of_pairs = {
        "grad_similarity": check("grad_similarity", grad_similarity, (videos, texts)),
        "grad_coefficients": check("grad_coefficients", grad_coefficients, (videos, basis, texts)),
        "grad_norm": check("grad_norm", grad_norm, (videos, texts)),
    }
    return _backward(arguments, of_pairs, None)[0]


def pair_statistics_backward(
    arguments: PairArguments,
    logit_scale: Tensor,
    targets: Tensor,
    samples: Tensor | None,
    row_logsumexp: Tensor,
    column_logsumexp: Tensor,
    norm_mean: Tensor,
    coefficient_mean: Tensor,
    gradients: list[Tensor],
    grad_sampled: Tensor | None,
) -> list[Tensor]:
    """As :func:`pair_terms_backward` from the statistics' gradients (row, column, target, variance
    of ‖Δ‖, mean and covariance of the coefficients), and then that of logit_scale."""
    texts, videos, basis = arguments.num_texts, arguments.num_videos, arguments.basis
    logit_scale, targets, samples = checked(arguments, logit_scale, targets, samples)
    grad_row, grad_column, grad_target, grad_variance, grad_mean, grad_covariance = gradients
    given = {
        "row_logsumexp": (row_logsumexp, (texts,)),
        "grad_row_logsumexp": (grad_row, (texts,)),
        "grad_target": (grad_target, (texts,)),
        "norm_mean": (norm_mean, (texts,)),
        "norm_slope": (grad_variance * (2 / max(videos - 1, 1)), (texts,)),
        "column_logsumexp": (column_logsumexp, (videos,)),
        "grad_column_logsumexp": (grad_column, (videos,)),
        "coefficient_mean": (coefficient_mean, (videos, basis)),
        "mean_slope": (grad_mean / texts, (videos, basis)),
        "covariance_slope": (
            (grad_covariance + grad_covariance.mT) / max(texts - 1, 1),
            (videos, basis, basis),
        ),
    }
    dtype = arguments.text.dtype
    statistics: dict[str, Tensor | None] = {
        name: arguments.check(name, tensor, shape, dtype) for name, (tensor, shape) in given.items()
    }
    statistics |= {"logit_scale": logit_scale, "targets": targets, "samples": samples}
    shape = (texts, 0 if samples is None else samples.shape[1], basis)
    statistics["grad_sampled"] = (
        None if samples is None else arguments.check_optional("grad_sampled", grad_sampled, shape)
    )
    if statistics["grad_sampled"] is None:
        statistics["samples"] = None
    found, grad_scale = _backward(arguments, {}, statistics)
    return [*found, grad_scale]


# Texts of a chunk, and the largest K whose sums of Gram gradients registers can hold.
TEXT_CHUNK = 2**14
SUMS_IN_REGISTERS = 32
_OF_PAIRS = ("grad_similarity", "grad_coefficients", "grad_norm")
_OF_TEXTS = (
    *("targets", "row_logsumexp", "grad_row_logsumexp", "grad_target", "norm_mean", "norm_slope"),
    *("samples", "grad_sampled"),
)
_OF_VIDEOS = (
    *("logit_scale", "column_logsumexp", "grad_column_logsumexp", "coefficient_mean"),
    *("mean_slope", "covariance_slope"),
)
_SUMS = (
    *("key_offset", "key_bias", "value_gram", "hidden_gram", "basis_gram", "frame_gram"),
    "basis_frame",
)


def _backward(
    arguments: PairArguments,
    of_pairs: dict[str, Tensor | None],
    statistics: dict[str, Tensor | None] | None,
) -> tuple[list[Tensor], Tensor]:
    texts, videos, dim = arguments.num_texts, arguments.num_videos, arguments.dim
    text, factors, num_rows = arguments.text, arguments.factors, arguments.num_rows
    grad_text = torch.zeros_like(text)
    grad = {
        name: torch.zeros_like(tensor) for name, tensor in factors.items() if name != "frame_mask"
    }
    grad_mean_frame = torch.zeros_like(grad["mean_frame"], dtype=torch.float64)
    grad_scale = torch.zeros((), dtype=torch.float64, device=text.device)
    half = arguments.precision == "bfloat16"
    operand = torch.bfloat16 if half else text.dtype
    rows = factors["rows"].to(operand)
    wide_frame = factors["mean_frame"].double()
    # Chunks of texts and of videos, whose products' gradients fit into the workspace.
    text_chunk = min(texts, TEXT_CHUNK)
    video_chunk = min(videos, max(1, BACKWARD_WORKSPACE // (text_chunk * num_rows)))
    workspace = torch.empty(video_chunk * num_rows * text_chunk, dtype=operand, device=text.device)
    in_registers = arguments.precision == "float32" and arguments.basis <= SUMS_IN_REGISTERS

    def adjoint(
        config: TileConfig, texts_from: int, texts_to: int, start: int, stop: int
    ) -> dict[str, Tensor]:
        size, length = stop - start, texts_to - texts_from
        count, segment_length = segments(size, length, config.block_a)
        grad_products = workspace[: size * num_rows * length].view(size * num_rows, length)
        sums = {name: grad[name].new_zeros(size, count, *grad[name].shape[1:]) for name in _SUMS}
        scale = arguments.empty(size, count) if statistics is not None else None
        of_texts = slice(texts_from, texts_to)
        given: dict[str, Any] = dict.fromkeys((*_OF_PAIRS, *_OF_TEXTS, *_OF_VIDEOS))
        for name, tensor in of_pairs.items():
            given[name] = None if tensor is None else tensor[..., of_texts]
        if statistics is not None:
            for name in _OF_TEXTS:
                tensor = statistics[name]
                given[name] = None if tensor is None else tensor[of_texts]
            given |= {name: statistics[name] for name in _OF_VIDEOS}
        gap_variance, squared_norm = arguments.empty(2, size, length)
        operands = arguments.operands() | {
            "text": text[of_texts],
            "text_mean": arguments.text_mean[of_texts],
            "squared_norm": arguments.squared_norm[of_texts],
            "num_texts": length,
        }
        launch(
            pair_adjoint_kernel,
            (size, count),
            config,
            grad_products=grad_products,
            grad_gap_variance=gap_variance,
            grad_squared_norm=squared_norm,
            **{f"part_{name}": tensor for name, tensor in sums.items()},
            part_scale=scale,
            **given,
            **operands,
            pair_stride=texts,
            segment_length=segment_length,
            first_video=start,
            per_text=0 if given["samples"] is None else given["samples"].shape[1],
            OF_STATISTICS=statistics is not None,
            SUMS_IN_REGISTERS=in_registers,
            **arguments.constants(),
            BLOCK_A=config.block_a,
            BLOCK_D=config.block_d,
        )
        found = {name: tensor.sum(1) for name, tensor in sums.items()}
        found |= {"products": grad_products, "gap": gap_variance, "norm": squared_norm}
        return found if scale is None else found | {"scale": scale}

    config = tuned(
        arguments,
        "backward",
        lambda c: adjoint(c, 0, text_chunk, 0, video_chunk),
        key=f"pair_adjoint {statistics is not None}",
    )
    with matmul_precision(arguments):
        for texts_from in range(0, texts, text_chunk):
            texts_to = min(texts_from + text_chunk, texts)
            tile = text[texts_from:texts_to]
            own = grad_text[texts_from:texts_to]
            low = tile.to(operand)
            centred = centre(tile.double())
            # The gap's part is a small difference: it is gathered in double precision.
            of_gap = torch.zeros_like(centred)
            of_norm = tile.new_zeros(len(tile), dtype=torch.float64)
            for start in range(0, videos, video_chunk):
                stop = min(start + video_chunk, videos)
                found = adjoint(config, texts_from, texts_to, start, stop)
                products = found["products"]
                own += product(products.T, rows[start:stop].flatten(0, 1))
                grad["rows"][start:stop] += product(products, low).view(-1, num_rows, dim)
                for name in _SUMS:
                    grad[name][start:stop] += found[name]
                gap = found["gap"].double()
                of_gap += centred * gap.sum(0).unsqueeze(1) - gap.T @ wide_frame[start:stop]
                grad_mean_frame[start:stop] += (
                    wide_frame[start:stop] * gap.sum(1).unsqueeze(1) - gap @ centred
                )
                of_norm += found["norm"].sum(0, dtype=torch.float64)
                if statistics is not None:
                    grad_scale += found["scale"].sum(dtype=torch.float64)
            own += (of_gap * (2 / dim) + 2 * of_norm.unsqueeze(1) * tile).to(own.dtype)
    grad["mean_frame"] = (grad_mean_frame * (2 / dim)).to(text.dtype)
    return [grad_text, *grad.values()], grad_scale.to(text.dtype)


def product(a: Tensor, b: Tensor) -> Tensor:
    """Matrix product, accumulated and returned in float32 at least."""
    if a.dtype != torch.bfloat16:
        return a @ b
    if a.device.type == "cuda":
        return torch.mm(a, b, out_dtype=torch.float32)
    return a.float() @ b.float()


@contextmanager
def matmul_precision(arguments: PairArguments) -> Iterator[None]:
    """PyTorch's own matrix products in the precision of the kernels', whatever surrounds them."""
    device = arguments.text.device.type
    matmul_options = torch.backends.cuda.matmul
    before = matmul_options.allow_tf32
    with torch.autocast(device, enabled=False):
        try:
            matmul_options.allow_tf32 = arguments.precision in ("tf32", "bfloat16")
            yield
        finally:
            matmul_options.allow_tf32 = before
