"""Gradients of the pair operators: of given pair gradients, and of the statistics'.

One kernel recomputes a tile of pairs and applies the adjoint; the gradients of the products t·rows
go through a workspace of fixed size, from which two ordinary matrix products make the texts' and
the rows' gradients.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from garevla.increments.low_rank.factors import center
from garevla.kernels.configs import BACKWARD_WORKSPACE, TileConfig
from garevla.kernels.launching import launch
from garevla.kernels.pairs.adjoint import (
    coefficients_adjoint,
    cosine_adjoint,
    increment_adjoint,
    pool_adjoint,
)
from garevla.kernels.pairs.arguments import PairArguments, Texts, segments, tuned
from garevla.kernels.pairs.arithmetic import (
    blocks,
    columns_of,
    load_blocks,
    outer,
    pair_forward,
    products,
    recount,
    spread,
    tile_texts,
    tile_videos,
    videos_of,
)
from garevla.kernels.pairs.statistics import checked
from garevla.ops.precision import use_precision


class PairGradients(NamedTuple):
    """Gradients of the pairs' own results, each from the chunk's first text on, or None."""

    similarity: Any = None  # (B, A)
    coefficients: Any = None  # (B, K, A)
    norm: Any = None  # (B, A)


class StatisticsGradients(NamedTuple):
    """The statistics, their gradients, and what both are of; a texts in a chunk."""

    logit_scale: Tensor  # (1)
    targets: Tensor  # (a)
    row_logsumexp: Tensor  # (a)
    grad_row_logsumexp: Tensor  # (a)
    grad_target: Tensor  # (a)
    norm_mean: Tensor  # (a)
    norm_slope: Tensor  # (a) gradient of the variance · 2 / (B − 1)
    column_logsumexp: Tensor  # (B)
    grad_column_logsumexp: Tensor  # (B)
    coefficient_mean: Tensor  # (B, K)
    mean_slope: Tensor  # (B, K) gradient of the mean / A
    covariance_slope: Tensor  # (B, K, K) symmetric: (gradient + its transpose) / (A − 1)
    samples: Tensor | None  # (a, n)
    grad_sampled: Tensor | None  # (a, n, K)

    def of_texts(self, chunk: slice) -> StatisticsGradients:
        """Those of some texts; what belongs to videos stays."""
        of_texts = ("targets", "row_logsumexp", "grad_row_logsumexp", "grad_target", "norm_mean")
        of_texts += ("norm_slope", "samples", "grad_sampled")
        tensors = {name: getattr(self, name) for name in of_texts}
        return self._replace(**{k: None if v is None else v[chunk] for k, v in tensors.items()})


class Sums(NamedTuple):
    """Gradients of the videos' factors, summed over a segment of the texts."""

    key_offset: Tensor  # (b, S, H·F)
    key_bias: Tensor  # (b, S, H·F)
    value_gram: Tensor  # (b, S, H·F, H·F)
    hidden_gram: Tensor  # (b, S, H·F+1, H·F+1)
    basis_gram: Tensor  # (b, S, K, K)
    frame_gram: Tensor  # (b, S, F, F)
    basis_frame: Tensor  # (b, S, K, F)


@triton.jit
def similarity_gradients(
    given,  # StatisticsGradients
    pairs,
    tile,  # first text, int64
    num_texts,  # from it on
    first,  # first video, int64
    num_videos,  # from it on
    TILE,
):
    """The statistics' gradients of similarity and ‖Δ‖, (BLOCK_A, VIDEOS), and of logit_scale."""
    texts = tl.arange(0, TILE.BLOCK_A)
    slot, exists = videos_of(num_videos, TILE)
    inside = texts < num_texts
    scale = tl.load(given.logit_scale)
    logits = pairs.similarity * scale
    # The logsumexps contain the logit, but for rounding.
    row = logits - tl.load(given.row_logsumexp + tile + texts, mask=inside, other=0.0)[:, None]
    row = tl.exp(tl.where(row > 0, 0.0, row))
    column = logits - tl.load(given.column_logsumexp + first + slot)[None, :]
    column = tl.exp(tl.where(column > 0, 0.0, column))
    grad_row = tl.load(given.grad_row_logsumexp + tile + texts, mask=inside, other=0.0)
    grad_column = tl.load(given.grad_column_logsumexp + first + slot)
    grad_logits = row * grad_row[:, None] + column * grad_column[None, :]
    grad_logits = tl.where(inside[:, None] & exists[None, :], grad_logits, 0.0)
    of_scale = tl.reshape(grad_logits * pairs.similarity, (TILE.BLOCK_A * TILE.VIDEOS,))
    grad_scale = tl.sum(of_scale, 0)
    target = tl.load(given.targets + tile + texts, mask=inside, other=-1)
    matching = (target - first).to(tl.int32)[:, None] == slot[None, :]
    grad_target = tl.load(given.grad_target + tile + texts, mask=inside, other=0.0)
    similarity = scale * grad_logits + tl.where(matching, grad_target[:, None], 0.0)

    mean = tl.load(given.norm_mean + tile + texts, mask=inside, other=0.0)
    norm = pairs.increment_norm - mean[:, None]
    norm *= tl.load(given.norm_slope + tile + texts, mask=inside, other=0.0)[:, None]
    return similarity, norm, grad_scale


@triton.jit
def coefficient_gradients(
    given,  # StatisticsGradients
    coefficients,  # (BLOCK_A, VIDEOS·K_PAD)
    tile,  # first text, int64
    num_texts,  # from it on
    first,  # first video, int64
    num_videos,  # from it on
    per_text,
    TILE,
):
    """The statistics' gradients of the coefficients, (BLOCK_A, VIDEOS·K_PAD)."""
    BASIS: tl.constexpr = TILE.HEADS * TILE.FRAMES + 2
    texts = tl.arange(0, TILE.BLOCK_A)
    of_basis, k, exists = columns_of(num_videos, TILE.K_PAD, TILE)
    inside = texts < num_texts
    slopes = given.covariance_slope + first * (BASIS * BASIS)
    slope = load_blocks(slopes, num_videos, TILE.K_PAD, BASIS, TILE.K_PAD, BASIS, TILE)
    at = of_basis * BASIS + k
    mean = tl.load(given.coefficient_mean + first * BASIS + at, mask=k < BASIS, other=0.0)
    moved = coefficients - mean[None, :]
    gradient = tl.dot(moved, slope, input_precision=TILE.FORMS, out_dtype=moved.dtype)
    mean_slope = tl.load(given.mean_slope + first * BASIS + at, mask=k < BASIS, other=0.0)
    gradient = tl.where(inside[:, None], gradient + mean_slope[None, :], 0.0)
    if given.samples is not None:
        for n in range(per_text):
            entries = tile * per_text + (texts * per_text + n)
            sample = tl.load(given.samples + entries, mask=inside, other=-1)
            wanted = (sample - first).to(tl.int32)[:, None] == of_basis[None, :]
            gradient += tl.load(
                given.grad_sampled + entries[:, None] * BASIS + k[None, :],
                mask=wanted & (exists & (k < BASIS))[None, :],
                other=0.0,
            )
    return gradient


@triton.jit
def load_pairs(
    gradient,  # (B, A), or None
    pair_stride,  # A
    tile,  # first text, int64
    num_texts,  # from it on
    first,  # first video, int64
    num_videos,  # from it on
    dtype: tl.constexpr,
    TILE,
):
    """A tile (BLOCK_A, VIDEOS) of pairs' numbers; zeros for None."""
    loaded = tl.zeros((TILE.BLOCK_A, TILE.VIDEOS), dtype)
    if gradient is not None:
        texts = tl.arange(0, TILE.BLOCK_A)[:, None]
        slot, _ = videos_of(num_videos, TILE)
        at = first * pair_stride + tile + (slot[None, :].to(tl.int64) * pair_stride + texts)
        loaded += tl.load(gradient + at, mask=texts < num_texts, other=0.0)
    return loaded


@triton.jit
def load_coefficients(
    gradient,  # (B, K, A), or None
    pair_stride,  # A
    tile,  # first text, int64
    num_texts,  # from it on
    first,  # first video, int64
    num_videos,  # from it on
    dtype: tl.constexpr,
    TILE,
):
    """A tile (BLOCK_A, VIDEOS·K_PAD) of pairs' coefficients; zeros for None."""
    BASIS: tl.constexpr = TILE.HEADS * TILE.FRAMES + 2
    loaded = tl.zeros((TILE.BLOCK_A, TILE.VIDEOS * TILE.K_PAD), dtype)
    if gradient is not None:
        texts = tl.arange(0, TILE.BLOCK_A)[:, None]
        of_basis, k, _ = columns_of(num_videos, TILE.K_PAD, TILE)
        at = (of_basis * BASIS + k)[None, :].to(tl.int64) * pair_stride + texts
        at += first * BASIS * pair_stride + tile
        mask = (texts < num_texts) & (k < BASIS)[None, :]
        loaded += tl.load(gradient + at, mask=mask, other=0.0)
    return loaded


@triton.jit
def add_vector(
    at,  # (N) addresses
    values,  # (N)
    mask,  # (N)
):
    """Add to a vector that belongs to this program."""
    tl.store(at, tl.load(at, mask=mask, other=0.0) + values, mask=mask)


@triton.jit
def add_blocks(
    matrices,  # (videos, S, rows, columns), from this segment's first on
    values,  # (BLOCK_A/16, VIDEOS·ROW_PAD, VIDEOS·COLUMN_PAD)
    parts,  # S
    num_videos,
    ROW_PAD: tl.constexpr,
    num_rows,
    COLUMN_PAD: tl.constexpr,
    num_columns,
    TILE,
):
    """Add the diagonal's blocks to matrices that belong to this program."""
    at, inside = blocks(
        matrices, parts, num_videos, ROW_PAD, num_rows, COLUMN_PAD, num_columns, TILE
    )
    _, _, exists = columns_of(num_videos, ROW_PAD, TILE)
    inside &= exists[:, None]
    tl.store(at, tl.load(at, mask=inside, other=0.0) + tl.sum(values, 0), mask=inside)


@triton.jit(
    do_not_specialize=[
        "num_texts",
        "num_videos",
        "pair_stride",
        "segment_length",
        "first_video",
        "per_text",
    ]
)
def pair_adjoint_kernel(
    grad_products,  # (b, R, a) out: of the products of the b videos and a texts of this chunk
    grad_gap_variance,  # (b, a) out
    grad_squared_norm,  # (b, a) out
    sums,  # Sums out, zeros before
    part_scale,  # (groups, S) out: of logit_scale, or None
    of_pairs,  # PairGradients
    of_statistics,  # StatisticsGradients, or None
    text,  # Texts, a of them
    video,  # Videos
    num_texts,  # a
    num_videos,  # where the chunk ends
    pair_stride,  # A
    segment_length,
    first_video,  # of the chunk
    per_text,  # n
    TILE,
):
    """A program owns a group of videos and one segment of the texts: recomputes them tile by tile,
    applies the adjoint, and sums what belongs to the videos.

    Reads what pair_scores_kernel reads; writes R + 2 numbers a pair into the workspace, of which
    the two products read R once more each (at F = 12 in float32 160 and 304 bytes, 84 and 152
    in bfloat16). Per pair the forward operations again and some 22·K_PAD² for the adjoint and the
    Gram matrices' gradients. On an H200 at A = B = 4096 in bfloat16 the L2 cache and the number of
    instructions allow 5 ms, the two products 1.7 ms more. Not yet measured.

    Compiled for sm_90 at D = 512, F = 12 (shared memory, registers a thread; no spills): 3 KB, 255
    in bfloat16; 3 KB, 241 in float32.
    """
    F: tl.constexpr = TILE.FRAMES
    HF: tl.constexpr = TILE.HEADS * F
    K: tl.constexpr = HF + 2
    ROWS: tl.constexpr = HF + F + K
    K_PAD: tl.constexpr = TILE.K_PAD
    F_PAD: tl.constexpr = TILE.F_PAD
    dtype = text.features.dtype.element_ty
    low = grad_products.dtype.element_ty
    first = first_video + tl.program_id(0).to(tl.int64) * TILE.VIDEOS
    start = tl.program_id(1).to(tl.int64) * segment_length
    parts = tl.num_programs(1)
    part = (first - first_video) * parts + tl.program_id(1)
    own = tile_videos(video, first, TILE)
    videos_left = (num_videos - first).to(tl.int32)
    texts = tl.arange(0, TILE.BLOCK_A)[:, None]
    sum_scale = tl.zeros((), dtype)
    for tile in range(start, min(start + segment_length, num_texts), TILE.BLOCK_A):
        tiled = tile_texts(text, tile, TILE)
        left = (num_texts - tile).to(tl.int32)
        n = recount(videos_left, left)
        dot = products(tiled, own, left, n, TILE)
        pairs = pair_forward(tiled, own, left, n, dot, TILE)
        inside = texts < left

        if of_statistics is not None:
            grad_similarity, grad_norm, of_scale = similarity_gradients(
                of_statistics, pairs, tile, left, first, n, TILE
            )
            sum_scale += of_scale
        else:
            similarity, norm = of_pairs.similarity, of_pairs.norm
            grad_similarity = load_pairs(similarity, pair_stride, tile, left, first, n, dtype, TILE)
            grad_norm = load_pairs(norm, pair_stride, tile, left, first, n, dtype, TILE)
        cosine = cosine_adjoint(grad_similarity, grad_norm, pairs, TILE)
        # In this order: what is not needed any more leaves its registers early.
        grad_coefficients = coefficients_adjoint(cosine, dot.basis, pairs, TILE)

        grad_frame = pool_adjoint(cosine, dot.frame, pairs, own, n, TILE)
        products_here = grad_products + (first - first_video) * ROWS * num_texts + tile
        of_frame, f, frame_exists = columns_of(n, F_PAD, TILE)
        at = (of_frame * ROWS + HF + f)[None, :] * num_texts + texts
        mask = inside & (frame_exists & (f < F))[None, :]
        tl.store(products_here + at, grad_frame.to(low), mask=mask)
        here = sums.frame_gram + part * (F * F)
        added = outer(cosine.video, pairs.pool, pairs.pool, TILE)
        add_blocks(here, added, parts, n, F_PAD, F, F_PAD, F, TILE)
        here = sums.basis_frame + part * (K * F)
        added = outer(cosine.score, pairs.coefficients, pairs.pool, TILE)
        add_blocks(here, added, parts, n, K_PAD, K, F_PAD, F, TILE)

        if of_statistics is not None:
            grad_coefficients += coefficient_gradients(
                of_statistics, pairs.coefficients, tile, left, first, n, per_text, TILE
            )
        else:
            given = of_pairs.coefficients
            grad_coefficients += load_coefficients(
                given, pair_stride, tile, left, first, n, dtype, TILE
            )
        grad = increment_adjoint(grad_coefficients, pairs, n, TILE)
        here = sums.basis_gram + part * (K * K)
        added = outer(cosine.increment, pairs.coefficients, pairs.coefficients, TILE)
        add_blocks(here, added, parts, n, K_PAD, K, K_PAD, K, TILE)
        here = sums.hidden_gram + part * ((HF + 1) * (HF + 1))
        added = outer(grad.hidden_weight, pairs.hidden, pairs.hidden, TILE)
        add_blocks(here, added, parts, n, K_PAD, HF + 1, K_PAD, HF + 1, TILE)
        here = sums.value_gram + part * (HF * HF)
        added = outer(grad.value_weight, pairs.attention, pairs.attention, TILE)
        add_blocks(here, added, parts, n, K_PAD, HF, K_PAD, HF, TILE)

        of_key, k, key_exists = columns_of(n, K_PAD, TILE)
        at = (of_key * ROWS + k)[None, :] * num_texts + texts
        mask = inside & (key_exists & (k < HF))[None, :]
        grad_key = grad.attention_logits * spread(-pairs.r1, K_PAD, TILE)
        tl.store(products_here + at, grad_key.to(low), mask=mask)
        mask = inside & (key_exists & (k < K))[None, :]
        at += (HF + F) * num_texts
        grad_basis = spread(2 * cosine.text, K_PAD, TILE) * pairs.coefficients
        tl.store(products_here + at, grad_basis.to(low), mask=mask)
        mask = key_exists & (k < HF)
        here = part * HF + (of_key * parts * HF + k)
        add_vector(sums.key_offset + here, -tl.sum(grad_key, 0), mask)
        add_vector(sums.key_bias + here, tl.sum(grad.attention_logits, 0), mask)

        slot, exists = videos_of(n, TILE)
        at = (first - first_video) * num_texts + tile + (slot[None, :] * num_texts + texts)
        tl.store(grad_gap_variance + at, grad.gap_variance, mask=inside & exists[None, :])
        tl.store(grad_squared_norm + at, cosine.text, mask=inside & exists[None, :])
        # The next tile may read of the sums what another thread has written.
        tl.debug_barrier()
    if of_statistics is not None:
        tl.store(part_scale + tl.program_id(0) * parts + tl.program_id(1), sum_scale)


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
    given = PairGradients(
        check("grad_similarity", grad_similarity, (videos, texts)),
        check("grad_coefficients", grad_coefficients, (videos, basis, texts)),
        check("grad_norm", grad_norm, (videos, texts)),
    )
    return _backward(arguments, given, None)[0]


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
    of_texts, of_videos = (texts,), (videos,)
    of_means, of_covariances = (videos, basis), (videos, basis, basis)
    dtype = arguments.text.dtype

    def check(name: str, tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
        return arguments.check(name, tensor, shape, dtype)

    if samples is not None:
        shape = (texts, samples.shape[1], basis)
        grad_sampled = arguments.check_optional("grad_sampled", grad_sampled, shape)
    given = StatisticsGradients(
        logit_scale,
        targets,
        check("row_logsumexp", row_logsumexp, of_texts),
        check("grad_row_logsumexp", grad_row, of_texts),
        check("grad_target", grad_target, of_texts),
        check("norm_mean", norm_mean, of_texts),
        check("grad_norm_variance", grad_variance, of_texts) * (2 / max(videos - 1, 1)),
        check("column_logsumexp", column_logsumexp, of_videos),
        check("grad_column_logsumexp", grad_column, of_videos),
        check("coefficient_mean", coefficient_mean, of_means),
        check("grad_coefficient_mean", grad_mean, of_means) / texts,
        check("grad_coefficient_covariance", grad_covariance + grad_covariance.mT, of_covariances)
        / max(texts - 1, 1),
        None if grad_sampled is None else samples,
        None if samples is None else grad_sampled,
    )
    found, grad_scale = _backward(arguments, PairGradients(), given)
    return [*found, grad_scale]


# Texts of a chunk.
TEXT_CHUNK = 2**14


def _backward(
    arguments: PairArguments, of_pairs: PairGradients, of_statistics: StatisticsGradients | None
) -> tuple[list[Tensor], Tensor]:
    texts, videos, dim = arguments.num_texts, arguments.num_videos, arguments.dim
    text, factors, num_rows = arguments.text, arguments.factors, arguments.num_rows
    grad_text = torch.zeros_like(text)
    grad = {
        name: torch.zeros_like(tensor) for name, tensor in factors.items() if name != "frame_mask"
    }
    # The gap's part is a small difference: where precision is wanted, it is gathered in double.
    exact = arguments.precision in ("float32", "tf32x3")
    gap_dtype = torch.float64 if exact else torch.float32
    grad_mean_frame = torch.zeros_like(grad["mean_frame"], dtype=gap_dtype)
    grad_scale = torch.zeros((), dtype=torch.float64, device=text.device)
    rows, low = arguments.videos.rows, arguments.texts.operand
    mean_frame = factors["mean_frame"].to(gap_dtype)
    # Chunks of texts and of videos, whose products' gradients fit into the workspace.
    text_chunk = min(texts, TEXT_CHUNK)
    video_chunk = min(videos, max(1, BACKWARD_WORKSPACE // (text_chunk * num_rows)))
    workspace = rows.new_empty(video_chunk * num_rows * text_chunk)

    def adjoint(config: TileConfig, chunk: slice, start: int, stop: int) -> dict[str, Tensor]:
        size, length = stop - start, chunk.stop - chunk.start
        count, segment_length = segments(size, length, config)
        groups = triton.cdiv(size, config.videos)
        grad_products = workspace[: size * num_rows * length].view(size * num_rows, length)
        sums = Sums(*(text.new_zeros(size, count, *grad[k].shape[1:]) for k in Sums._fields))
        scale = arguments.empty(groups, count) if of_statistics is not None else None
        gap_variance, squared_norm = (arguments.empty(size, length) for _ in range(2))
        tile = arguments.tile(config)
        launch(
            pair_adjoint_kernel,
            (groups, count),
            **config.options(),
            grad_products=grad_products,
            grad_gap_variance=gap_variance,
            grad_squared_norm=squared_norm,
            sums=sums,
            part_scale=scale,
            of_pairs=PairGradients(*(None if x is None else x[..., chunk] for x in of_pairs)),
            of_statistics=None if of_statistics is None else of_statistics.of_texts(chunk),
            text=Texts(*(x[chunk] for x in arguments.texts)),
            video=arguments.videos,
            num_texts=length,
            num_videos=stop,
            pair_stride=texts,
            segment_length=segment_length,
            first_video=start,
            per_text=_per_text(of_statistics),
            TILE=tile,
        )
        found = {name: tensor.sum(1) for name, tensor in sums._asdict().items()}
        found |= {"products": grad_products, "gap": gap_variance, "norm": squared_norm}
        return found if scale is None else found | {"scale": scale}

    config = tuned(
        arguments,
        "adjoint",
        lambda c: adjoint(c, slice(0, text_chunk), 0, video_chunk),
        key=f"pair_adjoint {of_statistics is not None}",
    )
    # PyTorch's own products in the precision of the kernels', whatever surrounds them.
    with (
        torch.autocast(text.device.type, enabled=False),
        use_precision("float32" if exact else "tf32"),
    ):
        for texts_from in range(0, texts, text_chunk):
            chunk = slice(texts_from, min(texts_from + text_chunk, texts))
            tile, own = text[chunk], grad_text[chunk]
            centred = center(tile.to(gap_dtype))
            of_gap = torch.zeros_like(centred)
            of_norm = tile.new_zeros(len(tile), dtype=torch.float64)
            for start in range(0, videos, video_chunk):
                stop = min(start + video_chunk, videos)
                found = adjoint(config, chunk, start, stop)
                products = found["products"]
                own += product(products.T, rows[start:stop].flatten(0, 1))
                grad["rows"][start:stop] += product(products, low[chunk]).view(-1, num_rows, dim)
                for name in Sums._fields:
                    grad[name][start:stop] += found[name]
                gap, centres = found["gap"].to(gap_dtype), mean_frame[start:stop]
                of_gap += centred * gap.sum(0).unsqueeze(1) - gap.T @ centres
                grad_mean_frame[start:stop] += centres * gap.sum(1).unsqueeze(1) - gap @ centred
                of_norm += found["norm"].sum(0, dtype=torch.float64)
                if of_statistics is not None:
                    grad_scale += found["scale"].sum(dtype=torch.float64)
            own += (of_gap * (2 / dim) + 2 * of_norm.unsqueeze(1) * tile).to(own.dtype)
    grad["mean_frame"] = (grad_mean_frame * (2 / dim)).to(text.dtype)
    return [grad_text, *grad.values()], grad_scale.to(text.dtype)


def _per_text(of_statistics: StatisticsGradients | None) -> int:
    samples = None if of_statistics is None else of_statistics.samples
    return 0 if samples is None else samples.shape[1]


def product(a: Tensor, b: Tensor) -> Tensor:
    """Matrix product, accumulated and returned in float32 at least."""
    if a.dtype != torch.bfloat16:
        return a @ b
    if a.device.type == "cuda":
        return torch.mm(a, b, out_dtype=torch.float32)
    return a.float() @ b.float()
