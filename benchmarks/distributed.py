"""What a batch that several processes share costs each of them, for each form of the loss.

    python -m benchmarks.distributed --json benchmarks/results/amd-epyc-avx2-2core/distributed.json

Processes on this machine, over gloo, a thread each. Features are random; a step is the loss and its
backward pass to the features, without an encoder and without DistributedDataParallel, whose
all-reduce of parameters is the same for any loss. Bytes are counted at the collectives, as a ring
sends them: of n bytes in each of N processes, all_gather (N - 1) n, all_reduce 2 (N - 1) n / N,
broadcast n. Pairs are counted where they are scored, those of the directional diversity, of own
texts with all videos, too. Time is the processor's, as processes may outnumber the cores, and
memory is the peak during a step. Of the processes, the one that has most.
"""

from __future__ import annotations

import argparse
import contextlib
import pickle
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

import garevla
from benchmarks import memory, tables
from benchmarks.cases import LOGIT_SCALE
from benchmarks.report import write_results
from garevla.head.sharded_statistics import Batch

LOSSES: dict[str, Callable[[int], torch.nn.Module]] = {
    "GARE without direction": lambda dim: _gare(dim, lambda_direction=0.0),
    "GARE, 32 videos of a direction": lambda dim: _gare(dim, direction_samples=32),
    "GARE": lambda dim: _gare(dim),
    "DiscoVLA": lambda dim: garevla.DiscoVLALoss(group=_group()),
}


def _gare(dim: int, **options: Any) -> garevla.GareLoss:
    psi = garevla.CrossAttentionPsi(dim)
    return garevla.GareLoss(psi, group=_group(), synchronized=True, **options)


def _group() -> bool | None:
    return True if dist.is_initialized() else None


@dataclass
class Counts:
    """Of one process and step."""

    bytes: float = 0.0
    pairs: int = 0


@contextlib.contextmanager
def counting() -> Iterator[Counts]:
    """Count what a process sends and scores."""
    counts = Counts()
    all_gather, all_reduce, broadcast = dist.all_gather, dist.all_reduce, dist.broadcast
    statistics, similarity = Batch.statistics, garevla.DiscoVLALoss.similarity

    def counted_gather(received: list[Tensor], own: Tensor, **options: Any) -> Any:
        counts.bytes += (len(received) - 1) * own.nbytes
        return all_gather(received, own, **options)

    def counted_reduce(own: Tensor, **options: Any) -> Any:
        others = dist.get_world_size() - 1
        counts.bytes += 2 * others / (others + 1) * own.nbytes
        return all_reduce(own, **options)

    def counted_broadcast(own: Tensor, *options: Any, **more: Any) -> Any:
        counts.bytes += own.nbytes
        return broadcast(own, *options, **more)

    def counted_statistics(batch: Batch, *arguments: Any) -> Any:
        found = statistics(batch, *arguments)
        counts.pairs += len(found.row_logsumexp) * len(found.column_logsumexp)
        return found

    def counted_similarity(loss: garevla.DiscoVLALoss, *arguments: Any) -> Tensor:
        found = similarity(loss, *arguments)
        counts.pairs += found.numel()
        return found

    def refused(*_: Any, **__: Any) -> None:
        raise NotImplementedError("a collective that is not counted")

    others = ("all_gather_object", "reduce_scatter", "all_to_all", "send")
    with contextlib.ExitStack() as stack:
        for name, function in {
            "all_gather": counted_gather,
            "all_reduce": counted_reduce,
            "broadcast": counted_broadcast,
            **dict.fromkeys(others, refused),
        }.items():
            stack.enter_context(mock.patch.object(dist, name, function))
        stack.enter_context(mock.patch.object(Batch, "statistics", counted_statistics))
        of_pairs = mock.patch.object(garevla.DiscoVLALoss, "similarity", counted_similarity)
        stack.enter_context(of_pairs)
        yield counts


def work(rank: int, count: int, folder: str, args: argparse.Namespace) -> None:
    """Measure all losses in one of the processes."""
    torch.set_num_threads(1)
    if count > 1:
        meeting = f"file://{folder}/meeting"
        dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=count)
    rows = [
        {"loss": name, "processes": count, **_measure(LOSSES[name], rank, count, args)}
        for name in args.losses
    ]
    Path(folder, f"{rank}.pickle").write_bytes(pickle.dumps(rows))
    if count > 1:
        dist.destroy_process_group()


def _measure(
    make: Callable[[int], torch.nn.Module], rank: int, count: int, args: argparse.Namespace
) -> dict[str, Any]:
    torch.manual_seed(0)
    loss = make(args.dim)
    own = len(range(args.batch)[rank::count])
    text = torch.randn(own, args.dim, requires_grad=True)
    frames = torch.randn(own, args.frames, args.dim, requires_grad=True)
    more = []
    if isinstance(loss, garevla.DiscoVLALoss):
        more = [None, torch.randn(own, args.frames, args.dim, requires_grad=True)]

    def step() -> None:
        loss(text, frames, LOGIT_SCALE, *more).loss.backward()

    step()  # what is made once is not counted
    with counting() as counts:
        step()
    seconds = []
    for _ in range(args.repeats):
        begin = time.process_time()
        step()
        seconds.append(time.process_time() - begin)
    return {
        "batch": args.batch,
        "frames": args.frames,
        "dim": args.dim,
        "sent_bytes": counts.bytes,
        "pairs": counts.pairs,
        "processor_seconds": min(seconds),
        "peak_growth_bytes": memory.peak_growth(step, torch.device("cpu")),
    }


def rows_of(args: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each loss and number of processes: of the process that has most."""
    rows = []
    for count in args.processes:
        with tempfile.TemporaryDirectory() as folder:
            mp.spawn(work, (count, folder, args), nprocs=count)
            found = [pickle.loads(Path(folder, f"{r}.pickle").read_bytes()) for r in range(count)]
        for of_all in zip(*found, strict=True):
            numbers = ("sent_bytes", "pairs", "processor_seconds", "peak_growth_bytes")
            most = {name: max((row[name] or 0) for row in of_all) for name in numbers}
            rows.append({**of_all[0], **most})
    return rows


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 3, 4, 8])
    parser.add_argument("--losses", nargs="+", choices=LOSSES, default=list(LOSSES))
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--frames", type=int, default=12)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the results here")
    args = parser.parse_args(arguments)
    rows = rows_of(args)
    print(tables.markdown(*tables.distributed(rows)))
    if args.json:
        write_results(args.json, "benchmarks.distributed", rows)


if __name__ == "__main__":
    main()
