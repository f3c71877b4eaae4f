"""The memory of encoding in chunks against the size of a chunk.

    python -m benchmarks.chunks --json benchmarks/results/amd-epyc-avx2-2core/chunks.json

A ViT-B/32 with random weights encodes random frames and is differentiated from its features, as
``run.encoder_chunk`` has it. Memory is that of a step beyond the weights: counted from the tensors
that PyTorch would allocate, none of which is there (so that any batch can be counted), and
measured, where a batch is small enough to be computed (``--measured``), as the peak of resident
memory. Frames lie where the loader left them and are moved by the chunk; they are not counted.
"""

from __future__ import annotations

import argparse
import copy
import weakref
from pathlib import Path
from typing import Any

import open_clip
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks import memory, tables
from benchmarks.report import write_results
from garevla.training import in_chunks

COUNTED = "counted"
MEASURED = "measured"


class LiveBytes(TorchDispatchMode):
    """Bytes of the tensors made inside that are alive, and the most of them."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self.known: set[int] = set()

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: Any = (), options: Any = None
    ) -> Any:
        # What was there before is not counted, nor a view of it.
        self._note((arguments, options), made=False)
        found = function(*arguments, **(options or {}))
        self._note(found, made=True)
        return found

    def _note(self, tensors: Any, *, made: bool) -> None:
        for tensor in tree_leaves(tensors):
            if not isinstance(tensor, Tensor):
                continue
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key not in self.known:
                self.known.add(key)
                size = storage.nbytes() if made else 0
                self.now += size
                self.most = max(self.most, self.now)
                weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


def step(encoder: nn.Module, video: Tensor, chunk: int) -> None:
    """Features of frames (B, F, 3, H, W) by the chunk, and the gradients of the weights."""

    def encode(part: Tensor) -> Tensor:
        # Moved to the device, and there in a copy of its own.
        return encoder(part.clone().flatten(0, 1)).unflatten(0, part.shape[:2])

    features = in_chunks(encode, chunk, video)
    encoder.zero_grad(set_to_none=True)
    features.square().sum().backward()


def counted(encoder: nn.Module, frames: int, batch: int, chunk: int) -> int:
    """Bytes by which memory would grow, gradients of the weights included."""
    size = encoder.image_size[0]
    video = torch.empty(batch, frames, 3, size, size, device="meta")
    with LiveBytes() as live:
        step(encoder, video, chunk)
    return live.most


def measured(encoder: nn.Module, frames: int, batch: int, chunk: int) -> int | None:
    """The same by resident memory."""
    size = encoder.image_size[0]
    video = torch.randn(batch, frames, 3, size, size)
    encoder.zero_grad(set_to_none=True)
    return memory.peak_growth(lambda: step(encoder, video, chunk), torch.device("cpu"))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="ViT-B-32-quickgelu")
    parser.add_argument("--batches", type=int, nargs="*", default=[32, 128, 1024])
    parser.add_argument("--chunks", type=int, nargs="+", default=[8, 32, 128, 0])
    parser.add_argument("--frames", type=int, default=12)
    parser.add_argument("--measured", type=int, default=0, help="videos of a batch to compute")
    parser.add_argument("--measured_frames", type=int, default=2)
    parser.add_argument("--measured_chunks", type=int, nargs="+", default=[2, 4, 8, 0])
    parser.add_argument("--json", type=Path, help="write the results here")
    args = parser.parse_args(arguments)
    encoder = open_clip.create_model(args.model, pretrained=None).visual.train()
    rows = []
    for chunk in args.measured_chunks if args.measured else []:
        peak = measured(encoder, args.measured_frames, args.measured, chunk)
        rows.append(_row(args, args.measured, chunk, args.measured_frames, peak, MEASURED))
        # The same step, to hold the count to it.
        found = counted(
            copy.deepcopy(encoder).to("meta"), args.measured_frames, args.measured, chunk
        )
        rows.append(_row(args, args.measured, chunk, args.measured_frames, found, COUNTED))
    encoder = encoder.to("meta")
    for batch in args.batches:
        for chunk in args.chunks:
            if chunk < batch:
                found = counted(encoder, args.frames, batch, chunk)
                rows.append(_row(args, batch, chunk, args.frames, found, COUNTED))
    print(tables.markdown(*tables.chunks(rows)))
    if args.json:
        write_results(args.json, "benchmarks.chunks", rows)


def _row(
    args: argparse.Namespace, batch: int, chunk: int, frames: int, peak: int | None, method: str
) -> dict[str, Any]:
    sizes = {"model": args.model, "batch": batch, "chunk": chunk, "frames": frames}
    return {**sizes, "peak_growth_bytes": peak, "method": method}


if __name__ == "__main__":
    main()
