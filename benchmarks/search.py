"""What searching an index costs, what its first stage misses, and what indexing costs.

    python -m benchmarks.search --json benchmarks/results/amd-epyc-avx2-2core/search.json

Recall is the share of the exact ten best segments that are among the first stage's K, for made-up
features around random topics under a random ψ, and, with ``--checkpoint`` and ``--videos``, for a
trained model and its videos, whose queries are the captions in ``--queries``, one a line. Times of
queries are the processor's on one thread, for a GARE head on a made-up index on disk. Indexing is
measured on a generated video, with random weights of the named models: processor seconds, of all
processes together, for an hour of video.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import tables
from benchmarks.report import write_results
from garevla.search import IndexConfig, Library, index_videos
from garevla.search.bank import read_bank
from garevla.search.format import VideoRecord
from garevla.search.model import ModelSource, load_search_model, segment_vectors
from garevla.search.stages import ExactScan
from garevla.search.store import Store
from garevla.search.writer import SegmentData, Writer, create
from garevla.training.checkpoint import save_checkpoint
from garevla.training.config import DataConfig, ModelConfig, TrainConfig
from garevla.training.model import build_model

Row = dict[str, Any]

BEST = 10
CANDIDATES = (50, 100, 200)
SEGMENTS_OF_A_VIDEO = 100
_TOPICS = 500
_TOWERS = {
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "head_width": 32, "patch_size": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},
}
_FAR_AWAY = "/nowhere"


def make_checkpoint(folder: Path, dim: int, frames: int) -> Path:
    """A GARE model of random weights: towers that cost little, features and ψ of a real one's
    dimension."""
    architecture = folder / "model.json"
    architecture.write_text(json.dumps({"embed_dim": dim, **_TOWERS}), encoding="utf-8")
    config = TrainConfig(
        DataConfig(folder, folder, max_frames=frames),
        ModelConfig("gare", str(architecture), None, temporal_layers=0, context_length=16),
    )
    torch.manual_seed(0)
    path = folder / "best.pt"
    weights = build_model(config).state_dict()
    save_checkpoint(path, {"config": config.as_dict(), "model": weights})
    return path


def features_around(topics: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
    """Features (count, D) as far from their topics as from 0."""
    chosen = topics[generator.integers(len(topics), size=count)]
    return (chosen + generator.standard_normal(chosen.shape)).astype(np.float32)


def make_library(folder: Path, checkpoint: Path, segments: int, dim: int, frames: int) -> Path:
    """An index of made-up features."""
    generator = np.random.default_rng(0)
    topics = generator.standard_normal((_TOPICS, dim)).astype(np.float32)
    model = load_search_model(ModelSource(str(checkpoint)), torch.device("cpu"))
    output = folder / f"{segments}.garevla"
    output.mkdir()
    bank = read_bank(None)
    create(
        output,
        {
            "dim": dim,
            "frames_dtype": "<f2",
            "bank": bank,
            "video_dir": _FAR_AWAY,
            "model": model.source.as_dict(),
            "sampling": model.sampling.as_settings(),
            "cutting": {"segments": "fixed", "seconds": 10.0, "overlap": 2.0},
        },
    )
    mask = torch.ones(SEGMENTS_OF_A_VIDEO, frames, dtype=torch.bool)
    with Writer(output) as writer:
        for number in range(segments // SEGMENTS_OF_A_VIDEO):
            middle = features_around(topics, SEGMENTS_OF_A_VIDEO, generator)[:, None]
            noise = generator.standard_normal((SEGMENTS_OF_A_VIDEO, frames, dim))
            of_video = (middle + 0.7 * noise).astype(np.float16)
            vectors = segment_vectors(torch.from_numpy(of_video).float(), mask).numpy()
            record = VideoRecord(0, f"{number}.mp4".encode(), 0, 0, "", 800.0)
            made = [
                SegmentData(8.0 * place, 8.0 * place + 10, *parts, generator.bytes(6000))
                for place, parts in enumerate(zip(of_video, vectors, strict=True))
            ]
            writer.add(record, made, generator.uniform(0, 0.2, len(bank)))
        writer.commit()
    return output


def recall(library: Library, texts: Sequence[str], name: str) -> list[Row]:
    """A row for each K."""
    shares: dict[int, list[float]] = {k: [] for k in CANDIDATES}
    segments = library.status()["segments"]
    features = library.model.encode_texts(list(texts))
    ids = library.segment_ids()
    for text, scores in zip(features, library.exact_scores(features, ids), strict=True):
        best = set(ids[np.argsort(-scores)[:BEST]].tolist())
        vector = torch.nn.functional.normalize(text, dim=-1).numpy()
        found = library.first_stage.search(vector, max(CANDIDATES)).ids.tolist()
        for k, values in shares.items():
            values.append(len(best & set(found[:k])) / len(best))
    return [
        {
            "task": "recall",
            "index": name,
            "segments": segments,
            "queries": len(texts),
            "candidates": k,
            "recall": statistics.mean(values),
        }
        for k, values in shares.items()
    ]


def words(count: int) -> list[str]:
    """Queries that differ; under random weights any words do."""
    generator = np.random.default_rng(1)
    known = " ".join(read_bank(None)).split()
    return [" ".join(generator.choice(known, 6)) for _ in range(count)]


def processor_seconds(call: Callable[[], object]) -> float:
    """Of this process, all threads together."""
    start = time.process_time()
    call()
    return time.process_time() - start


def resident() -> dict[str, int]:
    """Bytes of this process in memory: its own, and pages of files, which can be dropped."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    return {name: int(fields[name].split()[0]) * 1024 for name in ("RssAnon", "RssFile")}


def query_costs(path: Path, num_queries: int, exhaustive: bool) -> Row:
    """What queries cost, warm; the first one compares all vectors with their checksums."""
    store = Store(path)
    opening = processor_seconds(lambda: Store(path))
    library = Library.open(path, device="cpu")
    library.model.encode_texts(["warm"])
    before = resident()
    texts = words(num_queries)
    first = processor_seconds(lambda: library.search(texts[0]))
    whole = [processor_seconds(lambda text=text: library.search(text)) for text in texts]
    scan = ExactScan(store)
    vectors = [
        torch.nn.functional.normalize(library.model.encode_texts([text]), dim=-1)[0].numpy()
        for text in texts
    ]
    scan.search(vectors[0], 200)
    scanning = [processor_seconds(lambda query=query: scan.search(query, 200)) for query in vectors]
    after = resident()
    row: Row = {
        "task": "query",
        "segments": library.status()["segments"],
        "frames": library.model.sampling.max_frames,
        "dim": library.model.dim,
        "queries": num_queries,
        "open_seconds": opening,
        "first_query_seconds": first,
        "first_stage_seconds": statistics.median(scanning),
        "query_seconds": statistics.median(whole),
        "own_bytes": after["RssAnon"] - before["RssAnon"],
        "mapped_bytes": after["RssFile"] - before["RssFile"],
        "index_bytes": library.status()["bytes"],
    }
    if exhaustive:
        row["exact_seconds"] = processor_seconds(lambda: library.search(texts[0], exact=True))
    return row


def write_video(path: Path, seconds: int, height: int = 360, width: int = 640) -> None:
    """A video with something that moves over something that does not, 25 frames a second."""
    import av

    generator = np.random.default_rng(0)
    ground = generator.integers(0, 256, (height // 8, width // 8, 3), np.uint8)
    ground = ground.repeat(8, 0).repeat(8, 1)
    thing = generator.integers(0, 256, (height // 4, width // 4, 3), np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        stream.options = {"preset": "ultrafast", "crf": "28"}
        for number in range(25 * seconds):
            image = np.roll(ground, number // 4, axis=1)
            left = number * 3 % (width - thing.shape[1])
            image[height // 3 :][: thing.shape[0], left : left + thing.shape[1]] = thing
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, "rgb24")))
        container.mux(stream.encode())


def indexing_costs(folder: Path, model: str, seconds: int, workers: int) -> Row:
    """What an hour of video costs, with random weights; starting the processes is left out."""

    def times() -> float:
        found = [
            resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        ]
        return sum(usage.ru_utime + usage.ru_stime for usage in found)

    spent = []
    for length in (2, seconds):
        videos = folder / f"videos-{length}"
        if not videos.exists():
            videos.mkdir()
            write_video(videos / "video.mp4", length)
        output = folder / f"{model}-{length}"
        began = times()
        config = IndexConfig(
            video_dir=videos, output=output, model=model, device="cpu", num_workers=workers
        )
        report = index_videos(config, progress=False)
        spent.append(times() - began)
    hours = (report.seconds - 2) / 3600
    status = Library.open(output, device="cpu").status()
    return {
        "task": "indexing",
        "model": model,
        "video": "H.264, 640 × 360, 25 frames per second",
        "seconds_of_video": seconds,
        "processor_seconds_per_hour": (spent[1] - spent[0]) / hours,
        "segments_per_hour": status["segments"] / report.seconds * 3600,
        "bytes_per_hour": status["bytes"] / report.seconds * 3600,
        "dim": status["dim"],
    }


@torch.no_grad()
def rows_of(args: argparse.Namespace, folder: Path) -> list[Row]:
    """All rows; each is printed when it is there."""
    rows: list[Row] = []

    def done(*found: Row) -> None:
        rows.extend(found)
        for row in found:
            print(json.dumps(row), flush=True)

    checkpoint = make_checkpoint(folder, args.dim, args.frames)
    for number, segments in enumerate(args.segments):
        path = make_library(folder, checkpoint, segments, args.dim, args.frames)
        if number == 0:
            library = Library.open(path, device="cpu")
            done(*recall(library, words(args.queries), "made up, random ψ"))
        done(query_costs(path, args.queries, exhaustive=segments <= args.exhaustive))
    if args.checkpoint is not None:
        output = folder / "trained"
        config = IndexConfig(
            video_dir=args.videos,
            output=output,
            model=str(args.checkpoint),
            segments="whole",
            device="cpu",
        )
        index_videos(config, progress=False)
        texts = args.captions.read_text(encoding="utf-8").splitlines()
        done(*recall(Library.open(output, device="cpu"), texts, "the demo's model and videos"))
    for model in args.models:
        done(indexing_costs(folder, model, args.video_seconds, args.workers))
    return rows


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--segments", type=int, nargs="*", default=[20_000, 100_000])
    parser.add_argument("--exhaustive", type=int, default=20_000, help="largest scored whole")
    parser.add_argument("--queries", type=int, default=50)
    parser.add_argument("--frames", type=int, default=10)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--checkpoint", type=Path, help="a trained model")
    parser.add_argument("--videos", type=Path, help="its videos")
    parser.add_argument("--captions", type=Path, help="its queries, one a line")
    parser.add_argument("--models", nargs="*", default=["tiny", "ViT-B-32"])
    parser.add_argument("--video_seconds", type=int, default=122)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="for the indexes; a temporary one by default")
    parser.add_argument("--json", type=Path, help="write the results here")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        rows = rows_of(args, Path(folder))
    for table in (tables.search_recall, tables.search_queries, tables.search_indexing):
        print(tables.markdown(*table(rows)))
    if args.json:
        write_results(args.json, "benchmarks.search", rows)


if __name__ == "__main__":
    main()
