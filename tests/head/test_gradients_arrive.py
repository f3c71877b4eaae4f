"""Gradients of public inputs are contiguous: torch's collectives scatter others wrongly."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from torch import Tensor, distributed

import garevla
from tests.helpers import random_gap_mlp, random_psi

BATCH, FRAMES, DIM = 6, 3, 8
FUNCTIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "loss": lambda text, video: garevla.GareLoss(random_psi(DIM))(text, video, 20.0).loss,
    "streaming loss": lambda text, video: (
        garevla.GareLoss(random_psi(DIM), lambda_direction=0.0)(text, video, 20.0).loss
    ),
    "hidden layers": lambda text, video: (
        garevla.GareLoss(random_gap_mlp(DIM, 5))(text, video, 20.0).loss
    ),
    "similarity": lambda text, video: garevla.gare_similarity(text, video, random_psi(DIM)),
    "mean frame": garevla.mean_frame_similarity,
    "frame level": lambda text, video: garevla.frame_level_similarity(
        text.unsqueeze(1).expand(-1, 2, -1), video, 20.0
    ),
}


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_they_are_contiguous(backend: str, function: Callable[[Tensor, Tensor], Tensor]):
    found: list[Tensor] = []
    text = torch.randn(BATCH, DIM, requires_grad=True)
    video = torch.randn(BATCH, FRAMES, DIM, requires_grad=True)
    inputs = text.clone(), video.clone()
    for tensor in inputs:
        tensor.register_hook(found.append)
    value = function(*inputs)
    value.backward(torch.randn_like(value))
    assert len(found) == 2
    assert found[1].is_contiguous()
    assert found[0].is_contiguous() or function is FUNCTIONS["frame level"]  # expanded there


def _gathered(text: Tensor, video: Tensor) -> tuple[Tensor, Tensor]:
    from torch.distributed.nn.functional import all_gather as gather

    group = distributed.new_group()
    return torch.cat(gather(text, group)), torch.cat(gather(video, group))


def _train(rank: int, folder: str) -> None:
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2
    )
    try:
        torch.manual_seed(0)
        psi = random_psi(DIM).double()
        text = torch.randn(BATCH, DIM, dtype=torch.float64)
        video = torch.randn(BATCH, FRAMES, DIM, dtype=torch.float64)
        leaves = [text.requires_grad_(), video.requires_grad_()]
        alone = torch.autograd.grad(garevla.GareLoss(psi)(*leaves, 20.0).loss, leaves)
        own = [x.detach()[rank * 3 : rank * 3 + 3].requires_grad_() for x in leaves]
        loss = garevla.GareLoss(psi)(*_gathered(*own), 20.0).loss
        together = torch.autograd.grad(loss, own)
        for part, whole in zip(together, alone, strict=True):
            # all_gather's gradient is the sum of both ranks' equal ones.
            torch.testing.assert_close(part, 2 * whole[rank * 3 : rank * 3 + 3])
        # An older gloo that ends first takes with it what the other still waits for.
        distributed.barrier()
    finally:
        distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.skipif(not distributed.is_available(), reason="this torch has no torch.distributed")
def test_a_gathering_collective_scatters_them_right(tmp_path: Path):
    mp.spawn(_train, (str(tmp_path),), nprocs=2)
