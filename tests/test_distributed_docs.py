"""The training loops of docs/distributed.md, in two processes, end with the weights of one."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pickle
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn

from tests.helpers import relative_error
from tests.snippets import snippets

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not distributed.is_available(), reason="this torch has no torch.distributed"
    ),
]

DOCUMENT = Path(__file__).parent.parent / "docs/distributed.md"
MODEL, DDP, ACCELERATE, FSDP, OPEN_CLIP = snippets(DOCUMENT)[:5]
DIM, FRAMES = 8, 3


class Encoder(nn.Module):
    """A linear map of what is features already."""

    dim = DIM

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.text, self.video = nn.Linear(DIM, DIM), nn.Linear(DIM, DIM)
        self.logit_scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, texts: Tensor, videos: Tensor) -> tuple[Tensor, Tensor]:
        return self.text(texts), self.video(videos)


def batches(own: slice) -> list[tuple[Tensor, ...]]:
    """A part of each of three batches of five."""
    torch.manual_seed(1)
    mask = torch.ones(5, FRAMES, dtype=torch.bool)
    mask[1:3, -1] = False
    return [
        (torch.randn(5, DIM)[own], torch.randn(5, FRAMES, DIM)[own], mask[own]) for _ in range(3)
    ]


def work(rank: int, folder: str, loops: dict[str, str], ports: list[int]) -> None:
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    found = {}
    for (name, code), port in zip(loops.items(), ports, strict=True):
        settings = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_PORT": port}
        os.environ.update({key: str(value) for key, value in settings.items()})
        os.environ["MASTER_ADDR"] = "127.0.0.1"
        # Parts of two sizes.
        names: dict[str, Any] = {
            "encoder": Encoder(),
            "batches": batches((slice(3), slice(3, 5))[rank]),
        }
        torch.manual_seed(2)
        exec(MODEL + code, names)
        weights = names["model"].state_dict()
        # Where the loss is a module of its own.
        weights |= names["loss"].state_dict() if isinstance(names.get("loss"), nn.Module) else {}
        found[name] = {
            key.removeprefix("module.").replace("gare.", "loss."): getattr(
                value, "full_tensor", lambda v=value: v
            )()
            for key, value in weights.items()
        }
        distributed.destroy_process_group()
    Path(folder, f"{rank}.pickle").write_bytes(pickle.dumps(found))


def test_loops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    # Of processes that are to use the CPU.
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    loops = {"ddp": DDP, "open_clip": OPEN_CLIP}
    with contextlib.suppress(ImportError):
        from torch.distributed.fsdp import fully_shard  # noqa: F401

        loops["fsdp"] = FSDP
    if importlib.util.find_spec("accelerate") is not None:
        loops["accelerate"] = ACCELERATE
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in loops]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        ports = [each.getsockname()[1] for each in sockets]
    torch.multiprocessing.spawn(work, (str(tmp_path), loops, ports), nprocs=2)

    torch.set_default_dtype(torch.float64)
    try:
        names: dict[str, Any] = {}
        exec(MODEL, names)
        torch.manual_seed(2)
        encoder = Encoder()
        torch.manual_seed(2)
        model = names["Model"](encoder)
        model.loss.group = None
        before = {name: value.clone() for name, value in model.state_dict().items()}
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
        for batch in batches(slice(5)):
            optimizer.zero_grad()
            model(*batch).loss.backward()
            optimizer.step()
    finally:
        torch.set_default_dtype(torch.float32)
    for rank in range(2):
        found = pickle.loads((tmp_path / f"{rank}.pickle").read_bytes())
        assert found.keys() == loops.keys()
        for loop, weights in found.items():
            assert weights.keys() == before.keys()
            # All of them together: those without a gradient, such as keys' biases, are rounding.
            changes = [
                torch.cat([(after[name] - before[name]).flatten() for name in before])
                for after in (weights, model.state_dict())
            ]
            assert changes[1].norm() > 1e-4
            assert relative_error(*changes) < 1e-7, loop
