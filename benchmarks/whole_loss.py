"""Forward + backward of the whole GARE loss: ours against the published formulas, in one process.

python -m benchmarks.whole_loss --batch 128 256 --json benchmarks/results/cpu-2core/whole_loss.json
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.published import published_loss, unbound_direction
from benchmarks.report import write_results
from garevla import CrossAttentionPsi, GareLoss, backend_status, use_precision

LOGIT_SCALE = 50.0
BFLOAT16 = "native, bfloat16 products"


def measure(batch: int, frames: int, dim: int, repeats: int, direction: bool) -> dict[str, object]:
    """Times of both, interleaved, after each was checked against float64; seconds."""
    torch.manual_seed(batch)
    psi = CrossAttentionPsi(dim)
    text = torch.randn(batch, dim, requires_grad=True)
    video = torch.randn(batch, frames, dim, requires_grad=True)
    weights = {} if direction else {"lambda_direction": 0.0}
    available = [name for name, reason in backend_status().items() if reason is None]
    losses = {name: GareLoss(psi, backend=name, **weights) for name in sorted(available)}
    if "native" in losses:
        losses[BFLOAT16] = losses["native"]
    implementations: dict[str, Callable[[], Tensor]] = {
        "published": lambda: published_loss(text, video, psi, LOGIT_SCALE, **weights),
        "published, loop unbound": lambda: published_loss(
            text, video, psi, LOGIT_SCALE, direction=unbound_direction, **weights
        ),
    }
    for name, loss in losses.items():
        implementations[name] = lambda loss=loss: loss(text, video, LOGIT_SCALE).loss
    with torch.no_grad():
        exact_psi = CrossAttentionPsi(dim).double()
        exact_psi.load_state_dict(psi.state_dict())
        exact = GareLoss(exact_psi, backend="eager", **weights)(
            text.double(), video.double(), LOGIT_SCALE
        ).loss
    rows: dict[str, dict[str, float]] = {}
    seconds: dict[str, list[float]] = {name: [] for name in implementations}
    for round_ in range(repeats + 1):
        for name, implementation in implementations.items():
            start = time.perf_counter()
            with use_precision("bfloat16" if name == BFLOAT16 else "float32"):
                value = implementation()
                value.backward()
            elapsed = time.perf_counter() - start
            error = abs(value.item() / exact.item() - 1)
            if not error < (1e-2 if name == BFLOAT16 else 1e-4):
                raise RuntimeError(f"{name} is wrong at batch {batch}: relative error {error:.1e}")
            rows.setdefault(name, {})["relative_error"] = error
            # The first round warms up.
            if round_:
                seconds[name].append(elapsed)
    for name, row in rows.items():
        row["median_seconds"] = statistics.median(seconds[name])
        row["seconds"] = seconds[name]
    for row in rows.values():
        row["times_faster"] = rows["published"]["median_seconds"] / row["median_seconds"]
    return {
        "batch": batch,
        "frames": frames,
        "dim": dim,
        "dtype": "float32",
        "direction": direction,
        "implementations": rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, nargs="+", default=[64, 128, 256])
    parser.add_argument("--frames", type=int, default=12)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the results here")
    args = parser.parse_args()
    results = []
    for batch in args.batch:
        for direction in (True, False):
            row = measure(batch, args.frames, args.dim, args.repeats, direction)
            results.append(row)
            print(f"B = {batch}, direction {'on' if direction else 'off'}")
            for name, times in row["implementations"].items():
                print(
                    f"  {name:28s}{times['median_seconds']:9.3f} s  "
                    f"{times['times_faster']:6.1f} × faster  error {times['relative_error']:.0e}",
                    flush=True,
                )
    if args.json:
        write_results(args.json, "benchmarks.whole_loss", results)


if __name__ == "__main__":
    main()
