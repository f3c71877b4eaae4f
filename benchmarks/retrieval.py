"""Exact retrieval in a stream: every text against every video, the best k kept.

python -m benchmarks.retrieval --json benchmarks/results/cpu-2core/retrieval.json

With ``--captions`` the texts are captions, several of each video, and every right answer is ranked,
both ways; then times are the processor's, summed over its cores, which other work on the machine
changes little. The features are random. Scoring includes what depends on the videos alone (their
factors). The published formulas are timed on a slice of the pairs and extrapolated by the number
of pairs.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks import memory, tables
from benchmarks.report import write_results
from benchmarks.timing import seconds_of
from garevla import CrossAttentionPsi, backend_status, gare_similarity
from garevla.evaluation import streaming_ranks, top_k
from garevla.reference import gare as reference

# Seconds of a call on a device.
Clock = Callable[[Callable[[], object], torch.device], float]

# Texts and videos whose scores are compared with float64.
COMPARED = 50
# Videos scored once before the time is taken.
WARM_UP_VIDEOS = 512


class Features(NamedTuple):
    """Random features of a retrieval task."""

    text: Tensor  # (A, D)
    video: Tensor  # (B, F, D)
    mask: Tensor  # (B, F) bool

    def first(self, texts: int, videos: int, device: torch.device) -> Features:
        """A slice, on a device."""
        parts = (self.text[:texts], self.video[:videos], self.mask[:videos])
        return Features(*(part.to(device) for part in parts))


def published_seconds(
    features: Features, psi: CrossAttentionPsi, repeats: int, seconds: Clock
) -> float:
    """Seconds of the published formulas; the first time warms up."""

    def score() -> None:
        reference.pairs(features.text, features.video, psi, features.mask)

    found = [seconds(score, features.text.device) for _ in range(repeats + 1)]
    return statistics.median(found[1:])


def processor_seconds(call: Callable[[], object], device: torch.device) -> float:
    """Of all threads of this process together."""
    start = time.process_time()
    call()
    return time.process_time() - start


def measure(
    backend: str,
    features: Features,
    psi: CrossAttentionPsi,
    k: int | None,
    device: torch.device,
    seconds: Clock,
) -> dict[str, Any]:
    """A row's time, memory and error; without ``k`` of captions, all ranked."""

    def score(texts: Tensor, videos: Tensor, mask: Tensor) -> Tensor:
        return gare_similarity(texts, videos, psi, mask, backend=backend)

    def task(videos: int) -> None:
        arguments = features.text, features.video[:videos], score
        mask = features.mask[:videos]
        if k is None:
            targets = torch.arange(len(features.text)) % videos
            streaming_ranks(*arguments, targets, mask, device=device)
        else:
            top_k(*arguments, mask, k=k, device=device)

    few = features.first(COMPARED, COMPARED, device)
    exact_psi = CrossAttentionPsi(psi.dim).double().to(device)
    exact_psi.load_state_dict(psi.state_dict())
    exact = reference.pairs(few.text.double(), few.video.double(), exact_psi, few.mask).similarity
    error = float((score(*few).double() - exact).norm() / exact.norm())
    videos = len(features.video)
    task(min(WARM_UP_VIDEOS, videos))
    taken: list[float] = []
    growth = memory.peak_growth(lambda: taken.append(seconds(lambda: task(videos), device)), device)
    return {
        "seconds": taken[0],
        "pairs_per_second": len(features.text) * videos / taken[0],
        "peak_growth_bytes": growth,
        "relative_error": error,
    }


@torch.no_grad()
def rows_of(args: argparse.Namespace, device: torch.device) -> list[dict[str, Any]]:
    """A row for each backend that runs on the device."""
    torch.manual_seed(0)
    psi = CrossAttentionPsi(args.dim).eval().to(device)
    features = Features(
        torch.randn(args.texts, args.dim),
        torch.randn(args.videos, args.frames, args.dim),
        torch.ones(args.videos, args.frames, dtype=torch.bool),
    )
    on_cores = args.captions and device.type == "cpu"
    seconds = processor_seconds if on_cores else seconds_of
    sliced = features.first(*args.slice, device)
    slice_seconds = published_seconds(sliced, psi, args.repeats, seconds)
    published = slice_seconds * args.texts * args.videos / (args.slice[0] * args.slice[1])
    sizes = {name: getattr(args, name) for name in ("texts", "videos", "frames", "dim", "k")}
    if args.captions:
        sizes["k"] = None
    rows = []
    for backend, reason in backend_status(device).items():
        if reason is not None:
            print(f"{backend}: {reason}")
            continue
        row = {"backend": backend, **sizes, "dtype": "float32"}
        row |= measure(backend, features, psi, sizes["k"], device, seconds)
        row |= {
            "published_seconds_extrapolated": published,
            "published_slice": list(args.slice),
            "published_slice_seconds": slice_seconds,
            "times_faster": published / row["seconds"],
        }
        rows.append(row)
    return rows


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--texts", type=int, default=1000)
    parser.add_argument("--videos", type=int, default=20_000)
    parser.add_argument("--frames", type=int, default=12)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--captions", action="store_true", help="rank all, of several a video")
    parser.add_argument("--slice", type=int, nargs=2, default=(100, 200), metavar=("A", "B"))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu", help="of the scoring; features stay on the CPU")
    parser.add_argument("--json", type=Path, help="write the results here")
    args = parser.parse_args(arguments)
    device = torch.device(args.device)
    rows = rows_of(args, device)
    print(tables.markdown(*tables.retrieval(rows)))
    if args.json:
        write_results(args.json, "benchmarks.retrieval", rows, device=device)


if __name__ == "__main__":
    main()
