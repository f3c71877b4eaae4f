"""Videos read from the frame cache against decoding: items per second, and what of a step is data.

    python -m benchmarks.cached --json benchmarks/results/cpu-2core/cached.json

Generated H.264 files. Items are made on one thread, by its processor time, so that other work on
the machine does not count; the cache's files are in the system's page cache. The model trains on
random weights. Of a step, the data's part is that of processor time where one process does all,
and that of the clock's time spent waiting where ``--workers`` processes prepare batches.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import statistics
import tempfile
import time
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from benchmarks import tables, training
from benchmarks.report import write_results
from garevla.data import (
    RetrievalSplit,
    VideoDataset,
    VideoTextDataset,
    cache_frames,
    collate_pairs,
    load_msrvtt,
)
from garevla.data.frame_sampling import Sampling
from garevla.data.synthetic import SyntheticConfig, generate_dataset
from garevla.training.model import RetrievalModel

SAMPLING = Sampling(12, "resample")
SOURCES = ("mp4", "cache")
_CPU = torch.device("cpu")


def measure(split: RetrievalSplit, folder: Path, args: Namespace) -> list[dict[str, Any]]:
    """A row for each model and source."""
    rows = []
    for name, batch_size in zip(args.models, args.batch, strict=True):
        torch.manual_seed(0)
        settings = Namespace(model=name, mode="gare", frames=SAMPLING.max_frames)
        model = training.make_model(settings, _CPU)
        encoder = model.encoder
        transform = encoder.video_transform()
        cache = folder / str(encoder.image_size)
        cache_frames(
            split, cache, sampling=SAMPLING, progress=False, **encoder.resizing.as_settings()
        )
        caches = {"mp4": None, "cache": cache}
        videos, pairs = (
            {
                source: kind(split, transform, sampling=SAMPLING, frame_cache=caches[source])
                for source in SOURCES
            }
            for kind in (VideoDataset, VideoTextDataset)
        )
        seconds: dict[tuple[str, str], list[float]] = {}
        # In turns, so that a slow phase of the machine meets all.
        for _ in range(args.repeats):
            for source in SOURCES:
                taken = _seconds_of_items(videos[source])
                seconds.setdefault((source, "item"), []).append(taken)
                for workers in (0, args.workers):
                    share = _data_share(model, pairs[source], batch_size, workers, args.steps)
                    seconds.setdefault((source, f"share {workers}"), []).append(share)
        for source in SOURCES:
            item = statistics.median(seconds[source, "item"])
            rows.append(
                {
                    "model": name,
                    "image_size": encoder.image_size,
                    "batch": batch_size,
                    "source": source,
                    "items_per_second": 1 / item,
                    "times_mp4": statistics.median(seconds["mp4", "item"]) / item,
                    "data_share": statistics.median(seconds[source, "share 0"]),
                    "waiting_share": statistics.median(seconds[source, f"share {args.workers}"]),
                    "workers": args.workers,
                    "item_seconds": seconds[source, "item"],
                }
            )
    return rows


def _seconds_of_items(videos: VideoDataset) -> float:
    """Processor seconds of one item, on one thread, as data processes have."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    begin = time.process_time()
    for index in range(len(videos)):
        videos[index]
    seconds = (time.process_time() - begin) / len(videos)
    torch.set_num_threads(threads)
    return seconds


def _data_share(
    model: RetrievalModel, pairs: VideoTextDataset, batch_size: int, workers: int, steps: int
) -> float:
    """The share of training steps that data takes, once the first batch is there."""
    clock = time.perf_counter if workers else time.process_time
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)
    loader = DataLoader(
        pairs,
        batch_size=batch_size,
        sampler=_Repeated(len(pairs), (steps + 1) * batch_size),
        collate_fn=functools.partial(collate_pairs, tokenize=model.tokenize),
        num_workers=workers,
    )
    batches = iter(loader)
    batch = next(batches)
    waited, begin = 0.0, clock()
    for _ in range(steps):
        random = training.Batch(batch.tokens, batch.video, batch.frame_mask, None)
        optimizer.zero_grad()
        model.criterion(*training.encode(model, random), batch.frame_mask).loss.backward()
        optimizer.step()
        asked = clock()
        batch = next(batches)
        waited += clock() - asked
    return waited / (clock() - begin)


class _Repeated(torch.utils.data.Sampler[int]):
    """All items in order, over and over."""

    def __init__(self, num_items: int, length: int) -> None:
        self.num_items, self.length = num_items, length

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        return (index % self.num_items for index in range(self.length))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["tiny", "ViT-B-32-quickgelu"])
    parser.add_argument("--batch", nargs="+", type=int, default=[8, 4], help="of each model")
    parser.add_argument("--steps", type=int, default=3, help="of each sample; %(default)s")
    parser.add_argument("--workers", type=int, default=2, help="data processes; %(default)s")
    parser.add_argument("--videos", type=int, default=8, help="%(default)s")
    parser.add_argument("--size", type=int, default=320, help="pixels a side; %(default)s")
    parser.add_argument("--rate", type=int, default=24, help="frames a second; %(default)s")
    parser.add_argument("--seconds", type=int, default=10, help="of each video; %(default)s")
    parser.add_argument("--repeats", type=int, default=3, help="%(default)s")
    parser.add_argument("--json", type=Path, help="write the results here")
    args = parser.parse_args(arguments)
    config = SyntheticConfig(frame_size=args.size, frame_rate=args.rate, seconds=args.seconds)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        generate_dataset(root, num_train=args.videos, num_test=1, config=config)
        split = load_msrvtt(root / "annotations", root / "videos", "train-9k")
        rows = measure(split, root / "cache", args)
    print(tables.markdown(*tables.cached(rows)))
    if args.json:
        write_results(args.json, "benchmarks.cached", rows, videos=dataclasses.asdict(config))


if __name__ == "__main__":
    main()
