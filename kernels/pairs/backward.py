"""Gradients of the pair operators: of given pair gradients, and of the statistics'.

One kernel recomputes a tile of pairs and applies the adjoint; the gradients of the products t·rows
go through a workspace of fixed size, from which two ordinary matrix products make the texts' and
the rows' gradients.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from garevla.increments.low_rank.factors import center
from garevla.kernels import configs
from garevla.kernels.configs import LaunchConfig
from garevla.kernels.pairs.adjoint_kernel import FactorGradients, pair_adjoint_kernel
from garevla.kernels.pairs.arguments import PairArguments, check_statistics
from garevla.kernels.pairs.gradients import PairGradients, StatisticsGradients
from garevla.kernels.pairs.grid import launch_pairs, pair_grid
from garevla.kernels.pairs.tuning import tuned
from garevla.ops.precision import use_precision
from garevla.utils.numerics import variance_slope


def pair_terms_backward(
    arguments: PairArguments,
    grad_similarity: Tensor | None,
    grad_coefficients: Tensor | None,
    grad_norm: Tensor | None,
) -> list[Tensor]:
    """Gradients of the texts and of the factors but the mask, from the pairs' own."""
    texts, videos, basis = arguments.num_texts, arguments.num_videos, arguments.basis
    check = arguments.check_optional
    of_pairs = PairGradients(
        check("grad_similarity", grad_similarity, (videos, texts)),
        check("grad_coefficients", grad_coefficients, (videos, basis, texts)),
        check("grad_norm", grad_norm, (videos, texts)),
    )
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
    logit_scale, targets, samples = check_statistics(arguments, logit_scale, targets, samples)
    grad_row, grad_column, grad_target, grad_variance, grad_mean, grad_covariance = gradients

    def check(name: str, tensor: Tensor, *shape: int) -> Tensor:
        return arguments.check(name, tensor, shape, arguments.text.dtype)

    if samples is not None:
        shape = (texts, samples.shape[1], basis)
        grad_sampled = arguments.check_optional("grad_sampled", grad_sampled, shape)
    norm_slope = check("grad_norm_variance", grad_variance, texts) * variance_slope(videos)
    mean_slope = check("grad_coefficient_mean", grad_mean, videos, basis) / texts
    symmetric = grad_covariance + grad_covariance.mT
    symmetric = check("grad_coefficient_covariance", symmetric, videos, basis, basis)
    of_statistics = StatisticsGradients(
        logit_scale=logit_scale,
        targets=targets,
        row_logsumexp=check("row_logsumexp", row_logsumexp, texts),
        grad_row_logsumexp=check("grad_row_logsumexp", grad_row, texts),
        grad_target=check("grad_target", grad_target, texts),
        norm_mean=check("norm_mean", norm_mean, texts),
        norm_slope=norm_slope,
        column_logsumexp=check("column_logsumexp", column_logsumexp, videos),
        grad_column_logsumexp=check("grad_column_logsumexp", grad_column, videos),
        coefficient_mean=check("coefficient_mean", coefficient_mean, videos, basis),
        mean_slope=mean_slope,
        covariance_slope=symmetric * (0.5 * variance_slope(texts)),
        samples=None if grad_sampled is None else samples,
        grad_sampled=None if samples is None else grad_sampled,
    )
    gradients, grad_scale = _backward(arguments, PairGradients(), of_statistics)
    return [*gradients, grad_scale]


class _ChunkGradients(NamedTuple):
    """What the kernel finds for a chunk of b videos and a texts."""

    products: Tensor  # (b·R, a)
    factors: FactorGradients  # summed over the texts
    gap_variance: Tensor  # (b, a)
    squared_norm: Tensor  # (b, a)
    scale: Tensor | None  # logit_scale's, in parts; none of given pair gradients


def _chunk_gradients(
    arguments: PairArguments,
    of_pairs: PairGradients,
    of_statistics: StatisticsGradients | None,
    workspace: Tensor,
    config: LaunchConfig,
    texts: slice,
    videos: slice,
) -> _ChunkGradients:
    """Run the kernel; the products' gradients lie in the workspace."""
    num_texts, num_videos = texts.stop - texts.start, videos.stop - videos.start
    rows = num_videos * arguments.num_rows
    grid = pair_grid(num_videos, num_texts, config)
    products = workspace[: rows * num_texts].view(rows, num_texts)
    sums = FactorGradients(
        *(
            arguments.empty(num_videos, grid.segments, *arguments.factors[name].shape[1:])
            for name in FactorGradients._fields
        )
    )
    gap_variance, squared_norm = (arguments.empty(num_videos, num_texts) for _ in range(2))
    scale, samples = None, None
    if of_statistics is not None:
        scale, samples = arguments.empty(grid.groups, grid.segments), of_statistics.samples
    launch_pairs(
        pair_adjoint_kernel,
        arguments,
        config,
        grid,
        texts=texts,
        num_videos=videos.stop,
        grad_products=products,
        grad_gap_variance=gap_variance,
        grad_squared_norm=squared_norm,
        sums=sums,
        part_scale=scale,
        of_pairs=PairGradients(*(None if x is None else x[..., texts] for x in of_pairs)),
        of_statistics=None if of_statistics is None else of_statistics.of_texts(texts),
        pair_stride=arguments.num_texts,
        first_video=videos.start,
        per_text=0 if samples is None else samples.shape[1],
    )
    factors = FactorGradients(*(tensor.sum(1) for tensor in sums))
    return _ChunkGradients(products, factors, gap_variance, squared_norm, scale)


def _backward(
    arguments: PairArguments, of_pairs: PairGradients, of_statistics: StatisticsGradients | None
) -> tuple[list[Tensor], Tensor]:
    """Gradients of the texts and of the factors, and of logit_scale."""
    text, factors, num_rows = arguments.text, arguments.factors, arguments.num_rows
    num_texts, num_videos, dim = arguments.num_texts, arguments.num_videos, arguments.dim
    grad_text = torch.zeros_like(text)
    grad = {
        name: torch.zeros_like(tensor) for name, tensor in factors.items() if name != "frame_mask"
    }
    # The gap's part is a small difference: where precision is wanted, it is gathered in double.
    exact = arguments.precision in ("float32", "tf32x3")
    gap_dtype = torch.float64 if exact else torch.float32
    grad_mean_frame = torch.zeros_like(grad["mean_frame"], dtype=gap_dtype)
    grad_scale = torch.zeros((), dtype=torch.float64, device=text.device)
    row_operand, text_operand = arguments.videos.rows, arguments.texts.operand
    mean_frame = factors["mean_frame"].to(gap_dtype)
    # Chunks whose products' gradients fit into the workspace.
    text_step = min(num_texts, configs.BACKWARD_TEXTS)
    video_step = min(num_videos, max(1, configs.BACKWARD_PRODUCTS // (text_step * num_rows)))
    workspace = row_operand.new_empty(video_step * num_rows * text_step)
    adjoint = partial(_chunk_gradients, arguments, of_pairs, of_statistics, workspace)
    config = tuned(
        arguments,
        "adjoint",
        lambda c: adjoint(c, slice(0, text_step), slice(0, video_step)),
        key=f"pair_adjoint {of_statistics is not None}",
    )
    # PyTorch's own products in the precision of the kernels', whatever surrounds them.
    with (
        torch.autocast(text.device.type, enabled=False),
        use_precision("float32" if exact else "tf32"),
    ):
        for texts in _chunks(num_texts, text_step):
            of_texts = grad_text[texts]
            centered = center(text[texts].to(gap_dtype))
            of_gap = torch.zeros_like(centered)
            of_norm = text.new_zeros(len(centered), dtype=torch.float64)
            for videos in _chunks(num_videos, video_step):
                chunk = adjoint(config, texts, videos)
                of_texts += _product(chunk.products.T, row_operand[videos].flatten(0, 1))
                of_rows = _product(chunk.products, text_operand[texts])
                grad["rows"][videos] += of_rows.view(-1, num_rows, dim)
                for name, tensor in chunk.factors._asdict().items():
                    grad[name][videos] += tensor
                gap, centers = chunk.gap_variance.to(gap_dtype), mean_frame[videos]
                of_gap += centered * gap.sum(0).unsqueeze(1) - gap.T @ centers
                grad_mean_frame[videos] += centers * gap.sum(1).unsqueeze(1) - gap @ centered
                of_norm += chunk.squared_norm.sum(0, dtype=torch.float64)
                if chunk.scale is not None:
                    grad_scale += chunk.scale.sum(dtype=torch.float64)
            direct = of_gap * (2 / dim) + 2 * of_norm.unsqueeze(1) * text[texts]
            of_texts += direct.to(text.dtype)
    grad["mean_frame"] = (grad_mean_frame * (2 / dim)).to(text.dtype)
    return [grad_text, *grad.values()], grad_scale.to(text.dtype)


def _chunks(size: int, step: int) -> list[slice]:
    return [slice(start, min(start + step, size)) for start in range(0, size, step)]


def _product(a: Tensor, b: Tensor) -> Tensor:
    """Matrix product, accumulated and returned in float32 at least."""
    if a.dtype != torch.bfloat16:
        return a @ b
    if a.device.type == "cuda":
        return torch.mm(a, b, out_dtype=torch.float32)
    return a.float() @ b.float()
