"""The streaming loss: the materialised one's numbers, with nothing of A·B elements."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import garevla
from tests.helpers import operation, pair_factors, random_batch, random_psi, relative_error

pytestmark = pytest.mark.usefixtures("native")

# Elements of the largest piece that csrc/cpu works on at once, whatever the batch.
CHUNK = 2**20


def allocations(function, *inputs: Any) -> list[int]:
    """Bytes of every allocation of torch's, by the operators too."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        function(*inputs).backward()
    events = profile.profiler.kineto_results.events()
    return [event.nbytes() for event in events if event.name() == "[memory]" and event.nbytes() > 0]


STREAMING = {"plain": {"lambda_direction": 0.0}, "samples": {"direction_samples": 3}}


@pytest.mark.parametrize("arguments", STREAMING.values(), ids=STREAMING)
def test_no_allocation_grows_with_texts_times_videos(arguments: dict[str, Any]):
    batch = 1100
    assert batch**2 > CHUNK
    psi = random_psi(8)
    text, frames, _ = random_batch(batch, batch, 1, 8, torch.float32)
    loss = garevla.GareLoss(psi, **arguments)
    found = allocations(lambda: loss(text, frames, 20.0).loss)
    assert max(found) <= 4 * CHUNK


def test_the_watch_sees_allocations_inside_operators():
    psi = random_psi(8)
    text, frames, _ = random_batch(300, 300, 1, 8, torch.float32)
    loss = garevla.GareLoss(psi, lambda_direction=0.0)
    with_pairs = allocations(
        lambda: loss(text, frames, 20.0, return_similarity=True).loss,
    )
    products = 4 * 300 * 300 * 5
    assert max(with_pairs) >= 4 * 300 * 300 * 3
    assert max(allocations(lambda: loss(text, frames, 20.0).loss)) == products


def saved_elements(batch: int, **arguments: Any) -> int:
    psi = random_psi(8)
    text, frames, _ = random_batch(batch, batch, 2, 8, torch.float32)
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes() // 4
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        garevla.GareLoss(psi, **arguments)(text, frames, 20.0)
    return sum(saved.values())


@pytest.mark.parametrize("arguments", STREAMING.values(), ids=STREAMING)
def test_what_autograd_saves_grows_with_texts_plus_videos(arguments: dict[str, Any]):
    assert saved_elements(512, **arguments) <= 2 * saved_elements(256, **arguments)


def test_what_autograd_saves_of_pairs_grows_faster():
    assert saved_elements(512, lambda_direction=0.1) > 3 * saved_elements(256, lambda_direction=0.1)


NO_REGULARISERS = {"beta": 0.0, "lambda_trust": 0.0}
CASES = {  # texts, videos, frames, targets, arguments
    "square": (9, 9, 4, None, {}),
    "several texts a video": (9, 5, 4, [4, 0, 2, 2, 0, 0, 1, 2, 4], {}),
    "videos without texts": (5, 9, 4, [8, 0, 0, 3, 2], {}),
    "samples": (9, 9, 4, None, {"direction_samples": 3, "lambda_direction": 0.5}),
    "samples and targets": (9, 5, 4, [4, 0, 2, 2, 0, 0, 1, 2, 4], {"direction_samples": 2}),
    "floor": (9, 9, 4, None, {"trust_floor": 0.0}),
    "one frame": (9, 9, 1, None, {}),
    "two of each": (2, 2, 4, None, {}),
    "mean over features": (9, 9, 4, None, {"bottleneck_reduction": "mean"}),
    "contrastive alone": (9, 9, 4, None, NO_REGULARISERS),
    "one text": (1, 4, 3, [2], {"beta": 0.0}),
    "one text, one frame": (1, 4, 1, [2], {"beta": 0.0}),
    "one video": (4, 1, 3, [0, 0, 0, 0], {"lambda_trust": 0.0}),
    "one of each": (1, 1, 3, None, NO_REGULARISERS),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_streaming_is_the_materialised_loss(case):
    *shape, targets, arguments = case
    targets = None if targets is None else torch.tensor(targets)
    psi = random_psi(16, 2).double()
    text, frames, mask = random_batch(*shape, 16)
    scale = torch.tensor(7.0, dtype=torch.float64, requires_grad=True)
    weights = {"beta": 0.01, "lambda_direction": 0.0, "lambda_trust": 0.2, "trust_floor": 1e3}
    loss = garevla.GareLoss(psi, **weights | arguments)
    named = {"text": text, "frames": frames, "scale": scale, **dict(psi.named_parameters())}

    def outcome(backend: str, **kwargs: Any) -> tuple[Tensor, dict[str, Tensor]]:
        torch.manual_seed(0)
        with garevla.use_backend(backend):
            value = loss(text, frames, scale, mask, targets=targets, **kwargs).loss
        gradients = torch.autograd.grad(value, list(named.values()), allow_unused=True)
        # None where the loss is contrastive alone: not all of ψ takes part in the score's value.
        return value, dict(zip(named, gradients, strict=True))

    value, gradients = outcome("native")
    largest = max(float(gradient.norm()) for gradient in gradients.values())
    for backend, kwargs in (("eager", {}), ("native", {"return_similarity": True})):
        want, expected = outcome(backend, **kwargs)
        assert relative_error(value, want) < 1e-10 or want == 0 == value
        for name, gradient in gradients.items():
            # Some gradients are truly 0, the key bias's always: there is nothing but rounding.
            error = (gradient - expected[name]).norm()
            assert error <= 1e-10 * expected[name].norm() + 1e-14 * max(largest, 1), name


def statistics(
    size: tuple[int, int, int, int, int],
    dtype: torch.dtype,
    backend: str,
    poison: int | None = None,
):
    *shape, heads = size
    torch.manual_seed(0)
    psi = random_psi(shape[-1], heads).to(dtype)
    text, frames, mask = random_batch(*shape, dtype)
    if poison is not None:
        frames.data[poison, 0, 0] = torch.nan
    factors = pair_factors(text, frames, psi, mask)
    targets = torch.zeros(shape[0], dtype=torch.int64)
    return operation("pair_statistics", backend)(
        *factors, 3.0, torch.tensor(20.0).to(dtype), targets
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_one_frame_has_no_covariance_at_all(dtype: torch.dtype):
    found = statistics((33, 5, 1, 16, 2), dtype, "native")
    assert found.coefficient_covariance.eq(0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("video", [0, 3, 5])
def test_a_nan_is_not_lost(video: int, dtype: torch.dtype):
    got, want = (statistics((9, 6, 3, 16, 1), dtype, b, video) for b in ("native", "eager"))
    for name in ("row_logsumexp", "column_logsumexp", "target_similarity", "coefficient_mean"):
        assert torch.equal(getattr(got, name).isnan(), getattr(want, name).isnan()), name
    assert got.row_logsumexp.isnan().all()
