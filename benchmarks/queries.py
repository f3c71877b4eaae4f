"""What a few texts cost against many videos: from the frames, and from videos that are kept.

python -m benchmarks.queries --json benchmarks/results/amd-epyc-avx2-2core/queries.json

The features are random. The published formulas are timed on all pairs, a few videos at a time as
the published evaluation takes them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import tables
from benchmarks.report import write_results
from benchmarks.timing import best_seconds, seconds_of
from garevla import CrossAttentionPsi, encode_videos, gare_similarity
from garevla.reference import gare as reference

FORMS: dict[str, dict[str, Any]] = {
    "kept": {},
    "kept, float16": {"dtype": torch.float16},
    "kept, compact": {"compact": True},
    "kept, compact, float16": {"compact": True, "dtype": torch.float16},
}
# Videos that the published formulas take at once: their memory grows with the pairs.
_PUBLISHED_VIDEOS = 64


@torch.no_grad()
def rows_of(args: argparse.Namespace, device: torch.device) -> list[dict[str, Any]]:
    """A row for each way of scoring and number of texts."""
    torch.manual_seed(0)
    psi = CrossAttentionPsi(args.dim).eval().to(device)
    frames = torch.randn(args.videos, args.frames, args.dim, device=device)
    texts = torch.randn(max(args.texts), args.dim, device=device)
    few = slice(min(50, args.videos))
    wide = CrossAttentionPsi(args.dim).double().to(device)
    wide.load_state_dict(psi.state_dict())
    exact = reference.pairs(texts[:1].double(), frames[few].double(), wide).similarity

    def published(text: Tensor) -> Tensor:
        parts = frames.split(_PUBLISHED_VIDEOS)
        return torch.cat([reference.pairs(text, part, psi).similarity for part in parts], dim=1)

    ways: dict[str, tuple[Callable[[Tensor], Tensor], dict[str, Any]]] = {
        "published": (published, {"bytes": frames.nbytes}),
        "from the frames": (
            lambda text: gare_similarity(text, frames, psi),
            {"bytes": frames.nbytes},
        ),
    }
    for name, form in FORMS.items():
        encode = lambda form=form: encode_videos(frames, psi, **form)  # noqa: E731
        videos = encode()
        ways[name] = (
            lambda text, videos=videos: gare_similarity(text, videos),
            {"bytes": videos.nbytes, "encoding_seconds": seconds_of(encode, device)},
        )
    sizes = {name: getattr(args, name) for name in ("videos", "frames", "dim")}
    rows = []
    for name, (score, more) in ways.items():
        error = (score(texts[:1])[:, few].double() - exact).norm() / exact.norm()
        for count in args.texts:
            text = texts[:count]
            seconds = best_seconds(lambda score=score, text=text: score(text), device)
            rows.append(
                {"form": name, "texts": count, **sizes, "seconds": seconds, **more}
                | {"relative_error": error.item()}
            )
    return rows


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--texts", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--videos", type=int, default=2000)
    parser.add_argument("--frames", type=int, default=12)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, help="write the results here")
    args = parser.parse_args(arguments)
    device = torch.device(args.device)
    rows = rows_of(args, device)
    print(tables.markdown(*tables.queries(rows)))
    if args.json:
        write_results(args.json, "benchmarks.queries", rows, device=device)


if __name__ == "__main__":
    main()
