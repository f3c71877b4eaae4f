"""The head's matrix products on this CPU, by each library that could take them.

python -m benchmarks.products --json benchmarks/results/amd-epyc-2core/products.json

What garevla/ops/products.py chooses by: oneDNN where it is faster and as exact.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import tables
from benchmarks.report import write_results
from benchmarks.timing import best_seconds
from garevla.ops.products import library, onednn_linear, onednn_unavailable

_CPU = torch.device("cpu")
# Rows, features and outputs of products x · weightᵀ, at D = 512, F = 12.
SHAPES = {
    "ψ's maps of 256 videos' frames": (3072, 512, 512),
    "rows of 13 videos with 256 texts": (494, 512, 256),
    "64 texts' gradient, from 256 videos": (64, 9728, 512),
    "a block of a text's Gram matrix": (128, 512, 256),
    "hidden vectors of 4,096 pairs": (4096, 512, 512),
}


def measure(task: str, rows: int, features: int, outputs: int) -> dict[str, Any]:
    """A row: GFLOP/s and relative error of both libraries."""
    x, weight = torch.randn(rows, features), torch.randn(outputs, features)
    exact = F.linear(x.double(), weight.double())
    row: dict[str, Any] = {"task": task, "shape": [rows, features, outputs]}
    products: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"torch": F.linear}
    if onednn_unavailable() is None:
        products["onednn"] = onednn_linear
    for name, product in products.items():
        error = (product(x, weight) - exact).norm() / exact.norm()
        seconds = best_seconds(lambda product=product: product(x, weight), _CPU)
        row[f"{name}_gflops"] = 2e-9 * x.numel() * outputs / seconds
        row[f"{name}_error"] = error.item()
    return row


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the results here")
    args = parser.parse_args(arguments)
    rows = [measure(task, *shape) for task, shape in SHAPES.items()]
    print(f"{torch.get_num_threads()} threads; garevla takes {library()!r} here")
    if (reason := onednn_unavailable()) is not None:
        print(f"no oneDNN: {reason}")
    print(tables.markdown(*tables.products(rows)))
    if args.json:
        write_results(args.json, "benchmarks.products", rows, chosen=library())


if __name__ == "__main__":
    main()
