"""The directional diversity, exact and estimated from sampled videos."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch
from torch import Tensor

import garevla
from garevla.head.regularizers import draw_samples
from garevla.ops.eager.direction import direction, sampled_direction
from tests.helpers import random_batch, random_psi, relative_error

ALPHA = 1.5


def random_increments(texts: int, videos: int, basis: int = 3, dim: int = 8) -> list[Tensor]:
    """Coefficients (B, K, A) and a basis (B, K, D)."""
    shapes = (videos, basis, texts), (videos, basis, dim)
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


def exact(coefficients: Tensor, basis: Tensor) -> Tensor:
    norm = torch.einsum("bka,bkd->bda", coefficients, basis).norm(dim=1, keepdim=True)
    return direction(coefficients / norm, basis, ALPHA)


def estimate(coefficients: Tensor, basis: Tensor, samples: Tensor) -> Tensor:
    chosen = coefficients[samples, :, torch.arange(len(samples)).unsqueeze(1)]
    return sampled_direction(chosen, basis, samples, ALPHA)


@pytest.mark.parametrize("chunk", [1, 2**22])
def test_all_videos_sampled_is_exact(chunk: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("garevla.ops.eager.direction.CHUNK_ELEMENTS", chunk)
    inputs = random_increments(7, 5)
    samples = torch.stack([torch.randperm(5) for _ in range(7)])
    got, want = estimate(*inputs, samples), exact(*inputs)
    assert relative_error(got, want) < 1e-12
    for a, b in zip(
        torch.autograd.grad(3 * got, inputs), torch.autograd.grad(3 * want, inputs), strict=True
    ):
        assert relative_error(a, b) < 1e-12


@pytest.mark.parametrize("per_text", [2, 3])
def test_estimate_of_the_inner_mean_is_unbiased(per_text: int, monkeypatch: pytest.MonkeyPatch):
    inputs = random_increments(1, 4)
    estimates = []
    # All that draw_samples can draw, each as likely as any other.
    for order in permutations(range(4)):
        for start in range(4):
            monkeypatch.setattr(
                torch, "randperm", lambda *_, order=order, **__: torch.tensor(order)
            )
            monkeypatch.setattr(
                torch, "randint", lambda *_, start=start, **__: torch.tensor([[start]])
            )
            samples = draw_samples(1, 4, per_text, torch.device("cpu"))
            estimates.append(estimate(*inputs, samples).exp())
    estimates = torch.stack(estimates)
    assert estimates.std() > 1e-3
    assert relative_error(estimates.mean(), exact(*inputs).exp()) < 1e-14


def test_gradcheck_of_the_estimate():
    inputs = random_increments(3, 4, dim=5)
    samples = draw_samples(3, 4, 2, torch.device("cpu"))
    assert torch.autograd.gradcheck(lambda *x: estimate(*x, samples), inputs)


def test_no_gradient_where_none_is_wanted():
    coefficients, basis = random_increments(3, 4)
    samples = draw_samples(3, 4, 2, torch.device("cpu"))
    want = estimate(coefficients, basis, samples)
    assert torch.equal(estimate(coefficients.detach(), basis.detach(), samples), want)


@pytest.mark.parametrize(("videos", "per_text"), [(5, 2), (5, 5), (7, 3)])
def test_samples_are_distinct_and_every_pair_is_as_likely(videos: int, per_text: int):
    draws = torch.cat([draw_samples(8, videos, per_text, torch.device("cpu")) for _ in range(1500)])
    assert draws.shape == (12000, per_text)
    assert draws.dtype == torch.int64
    chosen = torch.zeros(len(draws), videos).scatter_(1, draws, 1.0)  # IndexError out of range
    assert chosen.sum(1).eq(per_text).all()
    share = chosen.T @ chosen / len(draws)
    of_pair = per_text * (per_text - 1) / (videos * (videos - 1))
    share = share.fill_diagonal_(0) / of_pair + torch.eye(videos)
    assert (share - 1).abs().max() < 0.15


def test_samples_follow_the_global_seed():
    def draw(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return draw_samples(20, 30, 4, torch.device("cpu"))

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))


@pytest.mark.parametrize("samples", [1, 0, -3])
def test_too_few_samples(samples: int):
    with pytest.raises(ValueError, match="direction_samples must be at least 2"):
        garevla.GareLoss(random_psi(8), direction_samples=samples)


@pytest.mark.usefixtures("backend")
def test_samples_of_the_loss():
    psi = random_psi(16).double()
    text, frames, mask = random_batch(6, 6, 3, 16)

    def term(samples: int | None, seed: int = 0) -> Tensor:
        torch.manual_seed(seed)
        loss = garevla.GareLoss(psi, direction_samples=samples)
        return loss(text, frames, 20.0, mask).direction

    whole = term(None)
    assert torch.equal(term(6), whole)
    assert torch.equal(term(100), whole)
    assert torch.equal(term(3), term(3))
    assert not torch.equal(term(3), term(3, seed=1))
