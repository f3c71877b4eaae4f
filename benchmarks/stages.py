"""Where the time of the whole loss goes: its stages beside their bare matrix products.

python -m benchmarks.stages --json benchmarks/results/cpu-2core/stages.json

Forward and backward of each stage alone, float32; the floor of a stage is its large matrix
products, forward and backward, timed in the same run. What is left is element-wise work, memory
traffic and fresh memory.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.report import write_results
from garevla import CrossAttentionPsi, GareLoss
from garevla.head.regularizers import bottleneck_of_moments
from garevla.increments.low_rank.factors import IncrementFactors, text_factors, video_factors
from garevla.ops.backends import resolve_backend

Step = Callable[[], object]


def leaf(x: Tensor) -> Tensor:
    return x.detach().clone().requires_grad_()


def backward_of(outputs: tuple[Tensor | None, ...]) -> None:
    """Backward from ones of all outputs that need it."""
    outputs = tuple(x for x in outputs if isinstance(x, Tensor) and x.requires_grad)
    torch.autograd.backward(outputs, [torch.ones_like(x) for x in outputs])


def stages(batch: int, frames: int, dim: int, backend: str) -> dict[str, tuple[Step, Step]]:
    """Name → (the stage, its bare products)."""
    psi = CrossAttentionPsi(dim)
    implementation = resolve_backend(backend)
    text, video = leaf(torch.randn(batch, dim)), leaf(torch.randn(batch, frames, dim))
    mask = torch.ones(batch, frames, dtype=torch.bool)
    *made, eps = psi(video)
    increment = IncrementFactors(*(leaf(x) for x in made), eps)
    *made, eps = video_factors(video.detach(), mask, increment)
    floating = (leaf(x) if x.is_floating_point() else x for x in made)
    factors = type(video_factors(video.detach(), mask, increment))(*floating, eps)
    texts = text_factors(text.detach().requires_grad_())
    scale, targets = torch.tensor(50.0), torch.arange(batch)
    pairs = implementation.pair_terms(texts, factors, 3.0)
    unit = leaf(pairs.coefficients / pairs.increment_norm.unsqueeze(1))
    moments = leaf(torch.randn(batch, frames + 2)), leaf(torch.eye(frames + 2).repeat(batch, 1, 1))

    flat, weight = torch.randn(batch * frames, dim), torch.randn(dim, dim)
    rows, features = factors.rows.detach().flatten(0, 1), texts.features.detach()
    products = rows @ features.T
    directions, kernel = torch.randn(batch, dim), torch.randn(batch, batch)

    def psi_products() -> None:
        for _ in range(4):
            flat @ weight, flat @ weight, flat.T @ flat

    def pair_products() -> None:
        rows @ features.T, rows @ features.T, products @ features, products.T @ rows

    def direction_products() -> None:
        for _ in range(batch):
            directions @ directions.T, kernel @ directions

    loss = GareLoss(psi, backend=backend)

    def all_products() -> None:
        psi_products(), pair_products(), direction_products()

    return {
        "psi": (lambda: backward_of(psi(video)), psi_products),
        "video factors": (lambda: backward_of(video_factors(video, mask, increment)), lambda: None),
        "statistics of all pairs": (
            lambda: backward_of(
                implementation.pair_statistics(texts, factors, 3.0, scale, targets)
            ),
            pair_products,
        ),
        "bottleneck": (
            lambda: bottleneck_of_moments(*moments, factors.basis, batch, "sum").backward(),
            lambda: None,
        ),
        "direction": (
            lambda: implementation.direction(unit, factors.basis, 2.0).backward(),
            direction_products,
        ),
        "whole loss": (lambda: loss(text, video, 50.0).loss.backward(), all_products),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--frames", type=int, default=12)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--backend", default="native")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--json", type=Path, help="write the results here")
    args = parser.parse_args()
    torch.manual_seed(0)
    found = stages(args.batch, args.frames, args.dim, args.backend)
    seconds: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in found}
    for round_ in range(args.repeats + 1):
        for name, steps in found.items():
            for step, times in zip(steps, seconds[name], strict=True):
                start = time.perf_counter()
                step()
                if round_:  # the first warms up
                    times.append(time.perf_counter() - start)
    results = []
    for name, (own, floor) in seconds.items():
        row = {
            "stage": name,
            "median_seconds": statistics.median(own),
            "products_seconds": statistics.median(floor),
        }
        results.append(row)
        print(
            f"{name:26s}{row['median_seconds'] * 1e3:9.1f} ms, its products "
            f"{row['products_seconds'] * 1e3:7.1f} ms"
        )
    sizes = {name: getattr(args, name) for name in ("batch", "frames", "dim", "backend")}
    if args.json:
        write_results(args.json, "benchmarks.stages", results, **sizes, dtype="float32")


if __name__ == "__main__":
    main()
