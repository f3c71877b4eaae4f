"""N processes give the values and gradients of one process on the whole batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
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


def gare(make: Callable[[], IncrementNetwork], **fixed: Any) -> Callable[..., nn.Module]:
    fixed |= {"beta": 0.1, "trust_floor": 1e9}
    return lambda **options: garevla.GareLoss(make(), **fixed, **options)


LOSSES: dict[str, Callable[..., nn.Module]] = {
    "one head": gare(lambda: random_psi(DIM)),
    "two heads": gare(lambda: random_psi(DIM, 2)),
    "gap mlp": gare(lambda: random_gap_mlp(DIM, 5)),
    "gap mlp with dropout": gare(lambda: random_gap_mlp(DIM, 5, dropout=0.4)),
    "pair dropout": gare(lambda: random_psi(DIM, dropout=0.4, dropout_mode="pair")),
    "videos corrected": gare(lambda: random_psi(DIM, 2), corrects="video"),
    "videos corrected, gap mlp with dropout": gare(
        lambda: random_gap_mlp(DIM, 5, dropout=0.4), corrects="video"
    ),
    "discovla": garevla.DiscoVLALoss,
    "joint": lambda **options: garevla.GareDiscoVLALoss(random_psi(DIM), **options),
}


class Model(nn.Module):
    """Stands in for an encoder, with ψ and the logit scale, as users wrap them."""

    def __init__(self, loss: str, group: Any, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.text, self.video = nn.Linear(DIM, DIM), nn.Linear(DIM, DIM)
        self.log_scale = nn.Parameter(torch.tensor(2.0))
        self.loss = LOSSES[loss](group=group, **options)
        self.captions = isinstance(self.loss, (garevla.DiscoVLALoss, garevla.GareDiscoVLALoss))
        self.double()

    def forward(
        self, text: Tensor, video: Tensor, mask: Tensor, captions: Tensor, targets: Tensor
    ) -> Any:
        if not self.captions and self.loss.corrects == "video":
            # The first text of each video; elsewhere as much padding as no other process has.
            first = torch.searchsorted(targets, torch.arange(len(video)))
            texts = garevla.Texts(self.text(text[first]), self.text(captions[first]))
            texts = texts.padded(FRAMES + len(video))
            return self.loss(texts, self.video(video), self.log_scale.exp(), mask)
        more = [self.text(captions)] if self.captions else []
        return self.loss(
            self.text(text), self.video(video), self.log_scale.exp(), mask, *more, targets=targets
        )


def batch(videos: int) -> tuple[Tensor, ...]:
    """Texts, videos, mask, captions and targets: every second video has two texts."""
    torch.manual_seed(1)
    targets = torch.arange(videos).repeat_interleave(torch.arange(videos) % 2 + 1)
    mask = torch.ones(videos, FRAMES, dtype=torch.bool)
    mask[::2, -1] = False
    texts = torch.randn(len(targets), DIM, dtype=torch.float64)
    features = [torch.randn(n, FRAMES, DIM, dtype=torch.float64) for n in (videos, len(targets))]
    return texts, features[0], mask, features[1], targets


def part(whole: tuple[Tensor, ...], first: int, last: int) -> tuple[Tensor, ...]:
    text, video, mask, captions, targets = whole
    own, videos = (targets >= first) & (targets < last), slice(first, last)
    return text[own], video[videos], mask[videos], captions[own], targets[own] - first


Outcome = tuple[dict[str, float], dict[str, Tensor]]


def outcome(model: nn.Module, inputs: tuple[Tensor, ...]) -> Outcome:
    """Terms, and the gradients of all parameters."""
    torch.manual_seed(2)
    out = model(*inputs)
    out.loss.backward()
    terms = {
        name: value.item()
        for name, value in vars(out).items()
        if value is not None and name != "dropout_seed"
    }
    gradients = {n.removeprefix("module."): p.grad for n, p in model.named_parameters()}
    return terms, gradients


Case = tuple[str, tuple[int, ...], dict[str, Any]]
"""Loss, videos of each process, options of the loss."""


def work(rank: int, cases: Sequence[Case], compiler: str | None = None) -> list[Outcome]:
    """Of one process; with a backend of torch.compile for the loss, where it is compiled."""
    found = []
    for loss, sizes, options in cases:
        first = sum(sizes[:rank])
        model = Model(loss, True, **options)
        if compiler is not None:
            model.loss.compile(backend=compiler)
        model = DistributedDataParallel(model)
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
SMOOTH = {"label_smoothing": 0.2}


CASES: list[Case] = [
    (loss, sizes, options | {"backend": backend})
    for backend, reason in garevla.backend_status().items()
    if backend != "triton" and reason is None
    for loss, sizes, options in (
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
        ("videos corrected", (3, 2), EXACT),
        ("videos corrected", (2, 1, 2), STREAMING),
        ("videos corrected", (1, 3), SAMPLED),
        ("videos corrected, gap mlp with dropout", (2, 3), EXACT),
        ("videos corrected", (3, 1), STREAMING | SMOOTH),
        ("one head", (3, 2), EXACT | SMOOTH),
        ("one head", (2, 1, 2), STREAMING | SMOOTH),
        ("gap mlp with dropout", (2, 3), STREAMING | SMOOTH),
        ("discovla", (3, 2), EXACT),
        ("discovla", (1, 2, 2), {"distillation": "mean_detached"}),
        ("joint", (2, 3), EXACT),
        ("joint", (2, 1, 2), STREAMING),
    )
]


@pytest.fixture(scope="module", params=[2, 3, pytest.param(4, marks=pytest.mark.slow)])
def found(request, tmp_path_factory) -> list[tuple[Case, list[Outcome]]]:
    """For each case of so many processes what they found; the processes are started once."""
    cases = [case for case in CASES if len(case[1]) == request.param]
    folder = tmp_path_factory.mktemp("processes")
    by_process = run_processes(request.param, folder, work, cases)
    return list(zip(cases, zip(*by_process, strict=True), strict=True))


def test_processes_give_what_one_gives(found: list[tuple[Case, list[Outcome]]]):
    for (loss, sizes, options), outcomes in found:
        want = outcome(Model(loss, None, **options), batch(sum(sizes)))
        for rank, own in enumerate(outcomes):
            check(own, want, f"{loss} {sizes} {options}, process {rank}")


@pytest.mark.parametrize(
    ("compiler", "case"),
    [
        ("eager", ("pair dropout", (2, 3), STREAMING)),
        ("aot_eager", ("one head", (3, 3), EXACT)),
        ("aot_eager", ("joint", (2, 3), EXACT)),
    ],
)
@pytest.mark.slow
def test_compiled_processes_give_what_a_plain_one_gives(tmp_path: Path, compiler: str, case: Case):
    """Also where what they exchange, forward and backward, becomes part of compiled graphs."""
    loss, sizes, options = case
    want = outcome(Model(loss, None, **options), batch(sum(sizes)))
    for rank, (own,) in enumerate(run_processes(2, tmp_path, work, [case], compiler)):
        check(own, want, f"{case}, process {rank}")


def misuse(rank: int) -> list[str]:
    """What is said of a ψ outside of the wrapped module, a process without videos, sub-groups."""
    messages = []

    def note(error: type[Exception], call: Callable[[], object]) -> None:
        with pytest.raises(error) as raised:
            call()
        messages.append(str(raised.value))

    text, frames = torch.randn(2, DIM), torch.randn(2, FRAMES, DIM)
    loss = garevla.GareLoss(random_psi(DIM), group=True)
    note(RuntimeError, lambda: loss(text, frames, 20.0))
    loss.synchronized = True
    loss(text, frames, 20.0)
    few = rank  # the first process has nothing
    note(ValueError, lambda: garevla.DiscoVLALoss(group=True)(text[:few], frames[:few], 20.0))
    uneven = torch.randn(2, FRAMES + rank, DIM)
    note(ValueError, lambda: loss(text, uneven, 20.0))
    loss.lambda_direction = 0.0
    loss(text, uneven, 20.0)
    kept = garevla.encode_videos(frames, loss.psi)
    note(TypeError, lambda: loss(text, kept, 20.0))
    note(NotImplementedError, lambda: loss(text, frames, 20.0, targets=[[0], [0, 1]]))
    texts, diagonal = garevla.Texts(text, frames), [0, 1]
    loss.corrects = "video"
    note(NotImplementedError, lambda: loss(texts, frames, 20.0, targets=diagonal))
    joint = garevla.GareDiscoVLALoss(loss.psi, group=True, corrects="video", synchronized=True)
    note(NotImplementedError, lambda: joint(texts, frames, 20.0))
    group = distributed.new_group([0])
    loss = garevla.GareLoss(random_psi(DIM), group=group, synchronized=True)
    if rank == 0:
        alone = garevla.GareLoss(loss.psi)
        assert torch.equal(loss(text, frames, 20.0).loss, alone(text, frames, 20.0).loss)
    else:
        note(ValueError, lambda: loss(text, frames, 20.0))
    return messages


def test_misuse(tmp_path: Path):
    first, second = run_processes(2, tmp_path, misuse)
    wanted = (
        "psi's gradients would not be averaged",
        "at least one text and one video",
        "one shape",
        "not videos that were kept",
        "a text has one video",
        "targets cannot be given",
        "one process",
        "not in the group",
    )
    for messages in (first, second):
        for message, part_of_it in zip(messages, wanted, strict=False):
            assert part_of_it in message
    assert (len(first), len(second)) == (7, 8)


def test_no_processes():
    loss = garevla.GareLoss(random_psi(DIM), group=True)
    with pytest.raises(RuntimeError, match="not initialized"):
        loss(torch.randn(2, DIM), torch.randn(2, FRAMES, DIM), 20.0)
