"""Exact retrieval in a stream: every text against every video, the best k kept.

python -m benchmarks.retrieval --json benchmarks/results/cpu-2core/retrieval.json

The features are random. Scoring includes what depends on the videos alone (their factors). The
published formulas are timed on a slice of the pairs and extrapolated by the number of pairs.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.published import published_pairs
from benchmarks.report import write_results
from garevla import CrossAttentionPsi, backend_status, gare_similarity
from garevla.evaluation import top_k


def published_seconds(
    text: Tensor, video: Tensor, psi: CrossAttentionPsi, texts: int, videos: int, repeats: int
) -> float:
    """Seconds of the published formulas for ``texts`` × ``videos`` pairs."""
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        published_pairs(text[:texts], video[:videos], psi)
        seconds.append(time.perf_counter() - start)
    # The first one warms up.
    return statistics.median(seconds[1:])


def peak_bytes() -> int:
    """Peak resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


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
    parser.add_argument("--json", type=Path, help="write the results here")
    args = parser.parse_args()

    torch.manual_seed(0)
    psi = CrossAttentionPsi(args.dim).eval()
    text = torch.randn(args.texts, args.dim)
    video = torch.randn(args.videos, args.frames, args.dim)
    pairs = args.texts * args.videos
    slice_seconds = published_seconds(text, video, psi, *args.slice, args.repeats)
    published = slice_seconds * pairs / (args.slice[0] * args.slice[1])
    print(
        f"published formulas, extrapolated from {args.slice[0]} x {args.slice[1]} pairs: "
        f"{published:.0f} s"
    )
    exact_psi = CrossAttentionPsi(args.dim).double()
    exact_psi.load_state_dict(psi.state_dict())
    sample = slice(0, 50)
    exact = published_pairs(text[sample].double(), video[sample].double(), exact_psi).similarity

    results = []
    for backend, reason in backend_status().items():
        if reason is not None:
            print(f"{backend}: {reason}")
            continue

        def score(texts: Tensor, videos: Tensor, mask: Tensor, backend: str = backend) -> Tensor:
            return gare_similarity(texts, videos, psi, mask, backend=backend)

        mask = torch.ones(args.videos, args.frames, dtype=torch.bool)
        error = (score(text[sample], video[sample], mask[sample]).double() - exact).norm()
        error = float(error / exact.norm())
        top_k(text, video[:512], score, mask[:512], k=args.k)
        before = peak_bytes()
        start = time.perf_counter()
        top_k(text, video, score, mask, k=args.k)
        seconds = time.perf_counter() - start
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
                "peak_growth_bytes": peak_bytes() - before,
                "relative_error": error,
            }
        )
        print(
            f"{backend}: {seconds:.1f} s, {pairs / seconds / 1e6:.2f} million pairs a second, "
            f"{published / seconds:.0f} x; error {error:.0e}",
            flush=True,
        )
    if args.json:
        write_results(args.json, "benchmarks.retrieval", results)


if __name__ == "__main__":
    main()
