"""Frames decoded per second: decord against other readers, on generated H.264 files.

    python -m benchmarks.video --json benchmarks/results/cpu-2core/video.json

Two tasks: all frames of a file, and the 12 that training samples. Every reader is first compared
with what decord reads; what is not installed is said so.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks import tables
from benchmarks.report import write_results
from benchmarks.timing import undisturbed
from garevla.data.frame_sampling import Sampling, frame_indices
from garevla.data.synthetic import VIDEO_DIR, SyntheticConfig, generate_dataset
from garevla.data.video import read_frames

# Two decoders' conversions to RGB differ by rounding; another frame differs by far more.
LARGEST_MEAN_DIFFERENCE = 3.0
SAMPLED = 12
_CPU = torch.device("cpu")


class Reader(NamedTuple):
    """A way to read frames: (path, indices or None for all) → uint8 (n, H, W, 3)."""

    package: str
    read: Callable[[Path, np.ndarray | None], np.ndarray]


def read_with_decord(path: Path, indices: np.ndarray | None) -> np.ndarray:
    """One thread, as garevla's training reads."""
    import decord

    reader = decord.VideoReader(str(path), num_threads=1)
    return reader.get_batch(range(len(reader)) if indices is None else indices).asnumpy()


def read_with_garevla(path: Path, indices: np.ndarray | None) -> np.ndarray:
    """decord with the checks that a wrong frame cannot pass; samples by itself."""
    if indices is None:
        return read_frames(path, Sampling(max_frames=1024, frames_per_second=10**6))
    return read_frames(path, Sampling(len(indices), "resample"))


def read_with_av(path: Path, indices: np.ndarray | None) -> np.ndarray:
    """Decodes in order, and converts only what is wanted; no seeking."""
    import av

    wanted = None if indices is None else set(indices.tolist())
    frames = []
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        for number, frame in enumerate(container.decode(stream)):
            if wanted is None or number in wanted:
                frames.append(frame.to_ndarray(format="rgb24"))
            if wanted is not None and number >= max(wanted):
                break
    return np.stack(frames)


def read_with_torchcodec(path: Path, indices: np.ndarray | None) -> np.ndarray:
    """Exact seeking, one thread."""
    from torchcodec.decoders import VideoDecoder

    decoder = VideoDecoder(str(path), dimension_order="NHWC", num_ffmpeg_threads=1)
    chosen = range(len(decoder)) if indices is None else indices.tolist()
    return decoder.get_frames_at(list(chosen)).data.numpy()


READERS = {
    "decord": Reader("decord", read_with_decord),
    "garevla (decord, checked)": Reader("decord", read_with_garevla),
    "PyAV": Reader("av", read_with_av),
    "torchcodec": Reader("torchcodec", read_with_torchcodec),
}


def measure(paths: list[Path], sampled: bool, repeats: int) -> list[dict[str, Any]]:
    """A row for each reader: frames per second, or why there are none."""
    wanted = [_sampled(path) if sampled else None for path in paths]
    rows = [_checked(name, paths[0], wanted[0]) for name in READERS]
    for row in rows:
        row["task"] = f"{SAMPLED} sampled" if sampled else "all frames"
    measured = [row for row in rows if row["status"] == "ok"]
    # In turns, so that a slow phase of the machine meets all.
    for _ in range(repeats):
        for row in measured:
            reader = READERS[row["reader"]]
            taken = undisturbed(partial(_read_all, reader, paths, wanted, row), _CPU)
            row["seconds"].append(taken.seconds)
    for row in measured:
        seconds = statistics.median(row["seconds"])
        row.update(
            files=len(paths),
            median_seconds=seconds,
            frames_per_second=row["frames"] / seconds,
            files_per_second=len(paths) / seconds,
        )
    return rows


def _read_all(
    reader: Reader, paths: list[Path], wanted: list[np.ndarray | None], row: dict[str, Any]
) -> None:
    row["frames"] = sum(len(reader.read(*job)) for job in zip(paths, wanted, strict=True))


def _checked(name: str, path: Path, indices: np.ndarray | None) -> dict[str, Any]:
    """The beginning of a reader's row: whether it is there and reads what decord reads."""
    reader = READERS[name]
    row: dict[str, Any] = {"reader": name, "status": "ok", "reason": None, "seconds": []}
    try:
        row["version"] = importlib.metadata.version(reader.package)
        row["mean_difference"] = _difference(reader, path, indices)
    except importlib.metadata.PackageNotFoundError:
        return {**row, "status": "unavailable", "reason": "not installed"}
    except ImportError:
        reason = f"not offered by {reader.package} {row['version']}"
        return {**row, "status": "unavailable", "reason": reason}
    except Exception as error:
        return {**row, "status": "failed", "reason": f"{type(error).__name__}: {error}"}
    if not row["mean_difference"] <= LARGEST_MEAN_DIFFERENCE:
        row.update(status="wrong", reason="not the frames asked for")
    return row


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--videos", type=int, default=8, help="%(default)s")
    parser.add_argument("--size", type=int, default=320, help="pixels a side; %(default)s")
    parser.add_argument("--rate", type=int, default=24, help="frames a second; %(default)s")
    parser.add_argument("--seconds", type=int, default=10, help="of each video; %(default)s")
    parser.add_argument("--repeats", type=int, default=3, help="%(default)s")
    parser.add_argument("--json", type=Path, help="write the results here")
    args = parser.parse_args(arguments)
    config = SyntheticConfig(frame_size=args.size, frame_rate=args.rate, seconds=args.seconds)
    with tempfile.TemporaryDirectory() as folder:
        generate_dataset(folder, num_train=max(2, args.videos - 1), num_test=1, config=config)
        paths = sorted((Path(folder) / VIDEO_DIR).glob("*.mp4"))
        rows = [row for sampled in (False, True) for row in measure(paths, sampled, args.repeats)]
    shape = f"{len(paths)} files of {config.num_frames} frames, {args.size} × {args.size}"
    print(f"frames decoded on one thread; {shape}")
    print(tables.markdown(*tables.video(rows)))
    for row in rows:
        if row["status"] != "ok":
            print(f"{row['reader']}, {row['task']}: {row['status']}: {row['reason']}")
    if args.json:
        write_results(args.json, "benchmarks.video", rows, videos=dataclasses.asdict(config))


def _sampled(path: Path) -> np.ndarray:
    import decord

    count = len(decord.VideoReader(str(path), num_threads=1))
    return frame_indices(count, 1.0, Sampling(SAMPLED, "resample"))


def _difference(reader: Reader, path: Path, indices: np.ndarray | None) -> float:
    """Mean absolute difference to decord's frames, of 255; also warms the reader up."""
    expected = read_with_decord(path, indices).astype(np.int16)
    frames = reader.read(path, indices)
    if frames.shape != expected.shape:
        return float("inf")
    return float(np.abs(frames - expected).mean())


if __name__ == "__main__":
    main()
