"""Exact retrieval in a stream: every text against every video, the best k kept.

python -m benchmarks.retrieval --json benchmarks/results/cpu-2core/retrieval.json

The features are random. Scoring includes what depends on the videos alone (their factors). The
published formulas are timed on a slice of the pairs and extrapolated by the number of pairs.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from benchmarks import memory
from benchmarks.published import published_pairs
from benchmarks.report import write_results
from benchmarks.timing import seconds_of
from garevla import CrossAttentionPsi, backend_status, gare_similarity
from garevla.evaluation import top_k


def published_seconds(
    text: Tensor, video: Tensor, psi: CrossAttentionPsi, mask: Tensor, repeats: int
) -> float:
    """Seconds of the published formulas for some texts and videos; the first time warms up."""

    def score() -> None:
        published_pairs(text, video, psi, mask)

    seconds = [seconds_of(score, text.device) for _ in range(repeats + 1)]
    return statistics.median(seconds[1:])


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--texts", type=int, default=1000)
    parser.add_argument("--videos", type=int, default=20_000)
    parser.add_argument("--frames", type=int, default=12)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--slice", type=int, nargs=2, default=(100, 200), metavar=("A", "B"))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu", help="of the scoring; features stay on the CPU")
    parser.add_argument("--json", type=Path, help="write the results here")
    args = parser.parse_args()

    torch.manual_seed(0)
    device = torch.device(args.device)
    psi = CrossAttentionPsi(args.dim).eval().to(device)
    text = torch.randn(args.texts, args.dim)
    video = torch.randn(args.videos, args.frames, args.dim)
    pairs = args.texts * args.videos
    mask = torch.ones(args.videos, args.frames, dtype=torch.bool)
    texts, videos = (slice(0, size) for size in args.slice)
    parts = (text[texts].to(device), video[videos].to(device))
    slice_seconds = published_seconds(*parts, psi, mask[videos].to(device), args.repeats)
    published = slice_seconds * pairs / (args.slice[0] * args.slice[1])
    print(
        f"published formulas, extrapolated from {args.slice[0]} x {args.slice[1]} pairs: "
        f"{published:.0f} s"
    )
    exact_psi = CrossAttentionPsi(args.dim).double().to(device)
    exact_psi.load_state_dict(psi.state_dict())
    sample = slice(0, 50)
    few = (text[sample].to(device), video[sample].to(device), mask[sample].to(device))
    exact = published_pairs(few[0].double(), few[1].double(), exact_psi, few[2]).similarity

    results = []
    for backend, reason in backend_status(device).items():
        if reason is not None:
            print(f"{backend}: {reason}")
            continue

        def score(texts: Tensor, videos: Tensor, mask: Tensor, backend: str = backend) -> Tensor:
            return gare_similarity(texts, videos, psi, mask, backend=backend)

        def best(count: int, score: Callable[..., Tensor] = score) -> None:
            top_k(text, video[:count], score, mask[:count], k=args.k, device=device)

        error = float((score(*few).double() - exact).norm() / exact.norm())
        best(512)
        measured: list[float] = []

        def timed(best: Callable[[int], None] = best, measured: list[float] = measured) -> None:
            measured.append(seconds_of(lambda: best(args.videos), device))

        growth = memory.peak_growth(timed, device)
        seconds = measured[0]
        results.append(
            {
                "backend": backend,
                "texts": args.texts,
                "videos": args.videos,
                "frames": args.frames,
                "dim": args.dim,
                "k": args.k,
                "dtype": "float32",
                "seconds": seconds,
                "pairs_per_second": pairs / seconds,
                "published_seconds_extrapolated": published,
                "published_slice": list(args.slice),
                "published_slice_seconds": slice_seconds,
                "times_faster": published / seconds,
                "peak_growth_bytes": growth,
                "relative_error": error,
            }
        )
        print(
            f"{backend}: {seconds:.1f} s, {pairs / seconds / 1e6:.2f} million pairs a second, "
            f"{published / seconds:.0f} x; error {error:.0e}",
            flush=True,
        )
    if args.json:
        write_results(args.json, "benchmarks.retrieval", results, device=device)


if __name__ == "__main__":
    main()
