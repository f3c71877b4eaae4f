"""What ways of gathering features do to the gradients of processes that share a batch.

    python -m benchmarks.gathering --json benchmarks/results/amd-epyc-avx2-2core/gathering.json

A linear encoder, a psi and a logit scale in float64; DistributedDataParallel's averaging; InfoNCE
on GARE's similarity. Each gradient is compared with that of one process on the whole batch: its
component along that one, as a factor, and its direction. The ways are written here as the codes
have them: features gathered, the loss computed of the gathered ones.
"""

from __future__ import annotations

import argparse
import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

import garevla
from benchmarks import tables
from benchmarks.report import write_results

DIM, FRAMES = 16, 4


def own_slot(own: Tensor) -> Tensor:
    """All features, of which the own ones carry a gradient."""
    parts = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, own.detach().contiguous())
    parts[dist.get_rank()] = own
    return torch.cat(parts)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, own: Tensor, add_up: bool) -> Tensor:
        ctx.add_up = add_up
        parts = [torch.empty_like(own) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, own.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        grad = grad.contiguous()
        if ctx.add_up:
            dist.all_reduce(grad)
        return grad.chunk(dist.get_world_size())[dist.get_rank()], None


def own_slice(own: Tensor) -> Tensor:
    """All features, of whose gradients a process takes the slice of its own ones."""
    return _Gather.apply(own, False)


def with_sum(own: Tensor) -> Tensor:
    """All features, whose gradients come back added up over the processes."""
    return _Gather.apply(own, True)


class Model(nn.Module):
    """Computes a loss of its own texts (B, D) and frames (B, F, D)."""

    def __init__(self, way: str | None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.way = way
        self.text, self.video = nn.Linear(DIM, DIM), nn.Linear(DIM, DIM)
        self.psi = garevla.CrossAttentionPsi(DIM)
        with torch.no_grad():
            for parameter in self.psi.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
        self.log_scale = nn.Parameter(torch.tensor(2.0))
        self.gare = garevla.GareLoss(
            self.psi,
            beta=0.0,
            lambda_direction=0.0,
            lambda_trust=0.0,
            group=True if way == OURS else None,
        )
        self.double()

    def forward(self, text: Tensor, video: Tensor) -> Tensor:
        text, video = self.text(text), self.video(video)
        scale = self.log_scale.exp()
        if self.way is None or self.way == OURS:
            return self.gare(text, video, scale).loss
        return WAYS[self.way](self.gare, text, video, scale)


def _whole(gather: Callable[[Tensor], Tensor], factor: str = "1") -> Callable[..., Tensor]:
    """The loss of the whole batch in every process."""

    def loss(gare: garevla.GareLoss, text: Tensor, video: Tensor, scale: Tensor) -> Tensor:
        found = gare(gather(text), gather(video), scale).loss
        return found * (dist.get_world_size() if factor == "N" else 1)

    return loss


def _own_rows(gather: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    """Of the own texts among all videos, and the own videos among all texts."""

    def loss(gare: garevla.GareLoss, text: Tensor, video: Tensor, scale: Tensor) -> Tensor:
        all_texts, all_videos = gather(text), gather(video)
        first = dist.get_rank() * len(text)
        right = torch.arange(first, first + len(text))
        rows = scale * gare.similarity(text, all_videos)
        columns = scale * gare.similarity(all_texts, video).T
        cross_entropy = nn.functional.cross_entropy
        return (cross_entropy(rows, right) + cross_entropy(columns, right)) / 2

    return loss


OURS = "garevla, group=True"
WAYS: dict[str, Callable[..., Tensor]] = {
    "own slot with a gradient, whole loss: open_clip's default": _whole(own_slot),
    "backward takes the own slice, whole loss: CLIP4Clip, GARE, DiscoVLA": _whole(own_slice),
    "the same, loss · N": _whole(own_slice, "N"),
    "no gradient of gathered ones, own rows: open_clip, local_loss": _own_rows(
        lambda own: own_slice(own).detach()
    ),
    "summed backward, whole loss: open_clip, gather_with_grad": _whole(with_sum),
    "summed backward, own rows: open_clip, both": _own_rows(with_sum),
}


def gradients(model: nn.Module, text: Tensor, video: Tensor) -> dict[str, Tensor]:
    model(text, video).backward()
    inner = getattr(model, "module", model)
    parts = {
        "encoder": [*inner.text.parameters(), *inner.video.parameters()],
        "psi": list(inner.psi.parameters()),
        "logit scale": [inner.log_scale],
    }
    return {name: torch.cat([p.grad.flatten() for p in of]) for name, of in parts.items()}


def batch(size: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    text = torch.randn(size, DIM, dtype=torch.float64)
    return text, text.unsqueeze(1) + torch.randn(size, FRAMES, DIM, dtype=torch.float64)


def work(rank: int, count: int, folder: str, size: int) -> None:
    torch.set_num_threads(1)
    meeting = f"file://{folder}/meeting"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=count)
    own = [part.chunk(count)[rank] for part in batch(size)]
    found = {
        way: gradients(nn.parallel.DistributedDataParallel(Model(way)), *own)
        for way in (*WAYS, OURS)
    }
    if rank == 0:
        Path(folder, "found.pickle").write_bytes(pickle.dumps(found))
    dist.destroy_process_group()


def rows_of(args: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each way and number of processes."""
    want = gradients(Model(None), *batch(args.batch))
    rows = []
    for count in args.processes:
        with tempfile.TemporaryDirectory() as folder:
            mp.spawn(work, (count, folder, args.batch), nprocs=count)
            found = pickle.loads(Path(folder, "found.pickle").read_bytes())
        for way, parts in found.items():
            row = {"way": way, "processes": count, "batch": args.batch}
            for name, gradient in parts.items():
                along = (gradient @ want[name] / want[name].square().sum()).item()
                cosine = nn.functional.cosine_similarity(gradient, want[name], dim=0).item()
                row[name] = {"factor": along, "cosine": cosine}
            rows.append(row)
    return rows


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, nargs="+", default=[4])
    parser.add_argument("--batch", type=int, default=32, help="a multiple of the processes")
    parser.add_argument("--json", type=Path, help="write the results here")
    args = parser.parse_args(arguments)
    rows = rows_of(args)
    print(tables.markdown(*tables.gathering(rows)))
    if args.json:
        write_results(args.json, "benchmarks.gathering", rows)


if __name__ == "__main__":
    main()
