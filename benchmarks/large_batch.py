"""One training step of the loss at a batch far beyond what materialising reaches: time and memory.

python -m benchmarks.large_batch --json benchmarks/results/cpu-2core/large_batch.json

Forward and backward of the whole loss, the directional diversity estimated from a few videos per
text. Memory is what the step adds to this process's peak resident memory, gradients of the
features and parameters included, on top of the features themselves.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from benchmarks.report import write_results
from benchmarks.retrieval import peak_bytes
from garevla import CrossAttentionPsi, GareLoss


def step(
    batch: int, frames: int, dim: int, samples: int | None, backend: str
) -> dict[str, float | int]:
    """Seconds and bytes of one step, after a small one for warming up."""
    torch.manual_seed(0)
    psi = CrossAttentionPsi(dim)
    loss = GareLoss(psi, direction_samples=samples, backend=backend)
    loss(torch.randn(32, dim), torch.randn(32, frames, dim), 50.0).loss.backward()
    text = torch.randn(batch, dim, requires_grad=True)
    video = torch.randn(batch, frames, dim, requires_grad=True)
    before = peak_bytes()
    start = time.perf_counter()
    value = loss(text, video, 50.0).loss
    middle = time.perf_counter()
    value.backward()
    end = time.perf_counter()
    if not all(bool(x.grad.isfinite().all()) for x in (text, video, *psi.parameters())):
        raise RuntimeError("a gradient is not finite")
    return {
        "forward_seconds": middle - start,
        "backward_seconds": end - middle,
        "peak_growth_bytes": peak_bytes() - before,
        "features_bytes": 4 * (text.numel() + video.numel()),
        "loss": value.item(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--frames", type=int, default=12)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--direction-samples", type=int, default=16)
    parser.add_argument("--backend", default="native")
    parser.add_argument("--json", type=Path, help="write the result here")
    args = parser.parse_args()
    sizes = (args.batch, args.frames, args.dim, args.direction_samples, args.backend)
    result = step(*sizes)
    growth, features = (result[f"{name}_bytes"] / 2**30 for name in ("peak_growth", "features"))
    print(
        f"B = {args.batch}: forward {result['forward_seconds']:.1f} s, backward "
        f"{result['backward_seconds']:.1f} s, peak memory + {growth:.2f} GiB beside features of "
        f"{features:.2f} GiB"
    )
    if args.json:
        names = ("batch", "frames", "dim", "direction_samples", "backend")
        row = {**dict(zip(names, sizes, strict=True)), "dtype": "float32", **result}
        write_results(args.json, "benchmarks.large_batch", [row])


if __name__ == "__main__":
    main()
