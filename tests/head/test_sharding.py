"""N processes give the values and gradients of one process on the whole batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

import garevla
from garevla.increments.base import IncrementNetwork
from tests.distributed import run_processes
from tests.helpers import random_gap_mlp, random_psi, relative_error

pytestmark = pytest.mark.skipif(
    not distributed.is_available(), reason="this torch has no torch.distributed"
)

DIM, FRAMES = 8, 3
NETWORKS: dict[str, Callable[[], IncrementNetwork]] = {
    "one head": lambda: random_psi(DIM),
    "two heads": lambda: random_psi(DIM, 2),
    "gap mlp": lambda: random_gap_mlp(DIM, 5),
    "gap mlp with dropout": lambda: random_gap_mlp(DIM, 5, dropout=0.4),
    "pair dropout": lambda: random_psi(DIM, dropout=0.4, dropout_mode="pair"),
}


class Model(nn.Module):
    """Stands in for an encoder, with ψ and the logit scale, as users wrap them."""

    def __init__(self, network: str, group: Any, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.text, self.video = nn.Linear(DIM, DIM), nn.Linear(DIM, DIM)
        self.log_scale = nn.Parameter(torch.tensor(2.0))
        self.loss = garevla.GareLoss(
            NETWORKS[network](), group=group, beta=0.1, trust_floor=1e9, **options
        )
        self.double()

    def forward(self, text: Tensor, video: Tensor, mask: Tensor, targets: Tensor) -> Any:
        scale = self.log_scale.exp()
        return self.loss(self.text(text), self.video(video), scale, mask, targets=targets)


def batch(videos: int) -> tuple[Tensor, ...]:
    """Texts, videos, mask and targets: the first video of each part has two texts."""
    torch.manual_seed(1)
    targets = torch.arange(videos).repeat_interleave(torch.arange(videos) % 2 + 1)
    mask = torch.ones(videos, FRAMES, dtype=torch.bool)
    mask[::2, -1] = False
    texts = torch.randn(len(targets), DIM, dtype=torch.float64)
    return texts, torch.randn(videos, FRAMES, DIM, dtype=torch.float64), mask, targets


def part(whole: tuple[Tensor, ...], first: int, last: int) -> tuple[Tensor, ...]:
    text, video, mask, targets = whole
    own = (targets >= first) & (targets < last)
    return text[own], video[first:last], mask[first:last], targets[own] - first


Outcome = tuple[dict[str, float], dict[str, Tensor]]


def outcome(model: nn.Module, inputs: tuple[Tensor, ...]) -> Outcome:
    """Terms, and the gradients of all parameters."""
    torch.manual_seed(2)
    out = model(*inputs)
    out.loss.backward()
    names = ("loss", "contrastive", "bottleneck", "direction", "trust_region")
    terms = {n: float(value) for n in names if (value := getattr(out, n)) is not None}
    gradients = {n.removeprefix("module."): p.grad for n, p in model.named_parameters()}
    return terms, gradients


Case = tuple[str, tuple[int, ...], dict[str, Any]]
"""Network, videos of each process, options of the loss."""


def work(rank: int, cases: Sequence[Case]) -> list[Outcome]:
    found = []
    for network, sizes, options in cases:
        first = sum(sizes[:rank])
        model = DistributedDataParallel(Model(network, True, **options))
        found.append(outcome(model, part(batch(sum(sizes)), first, first + sizes[rank])))
    return found


def check(found: Outcome, want: Outcome, case: str) -> None:
    terms, gradients = found
    assert terms.keys() == want[0].keys(), case
    for name, value in want[0].items():
        assert terms[name] == pytest.approx(value, rel=1e-9), (case, name)
    for name, gradient in want[1].items():
        if gradient is not None and gradient.norm() > 1e-9:
            assert relative_error(gradients[name], gradient) < 1e-9, (case, name)


EXACT: dict[str, Any] = {}
STREAMING = {"lambda_direction": 0.0}
SAMPLED = {"direction_samples": 3}


CASES: list[Case] = [
    (network, sizes, options | {"backend": backend})
    for backend, reason in garevla.backend_status().items()
    if backend != "triton" and reason is None
    for network, sizes, options in (
        ("one head", (3, 3), EXACT),
        ("one head", (4, 1, 2), STREAMING),
        ("two heads", (2, 3, 1, 2), EXACT),
        ("one head", (1, 1), SAMPLED | {"direction_samples": 2}),
        ("two heads", (3, 2), SAMPLED),
        ("gap mlp", (2, 3), EXACT),
        ("gap mlp", (2, 1, 3), STREAMING),
        ("gap mlp with dropout", (2, 3), EXACT),
        ("gap mlp with dropout", (3, 2), SAMPLED),
        ("pair dropout", (3, 2), EXACT),
        ("pair dropout", (2, 2, 1), STREAMING),
    )
]


@pytest.fixture(scope="module", params=[2, 3, 4])
def found(request, tmp_path_factory) -> list[tuple[Case, list[Outcome]]]:
    """For each case of so many processes what they found; the processes are started once."""
    cases = [case for case in CASES if len(case[1]) == request.param]
    folder = tmp_path_factory.mktemp("processes")
    by_process = run_processes(request.param, folder, work, cases)
    return list(zip(cases, zip(*by_process, strict=True), strict=True))


def test_processes_give_what_one_gives(found: list[tuple[Case, list[Outcome]]]):
    for (network, sizes, options), outcomes in found:
        want = outcome(Model(network, None, **options), batch(sum(sizes)))
        for rank, own in enumerate(outcomes):
            check(own, want, f"{network} {sizes} {options}, process {rank}")
