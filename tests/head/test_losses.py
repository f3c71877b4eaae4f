from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import garevla
from garevla.reference import gare as reference
from tests.helpers import random_batch, random_psi, relative_error


def test_info_nce_is_the_symmetric_cross_entropy():
    similarity = torch.randn(7, 7, dtype=torch.float64)
    got = garevla.info_nce(similarity, 30.0)
    assert relative_error(got, reference.info_nce(similarity, 30.0)) < 1e-14
    same = garevla.info_nce(similarity, torch.tensor(30.0), torch.arange(7))
    assert torch.equal(same, got)


def test_info_nce_with_several_texts_a_video():
    similarity = torch.randn(5, 4, dtype=torch.float64)
    targets = torch.tensor([2, 0, 2, 3, 2])
    rows = F.cross_entropy(similarity * 3, targets)
    share = F.one_hot(targets, 4).double()
    present = share.sum(0) > 0
    share = share[:, present] / share[:, present].sum(0)
    columns = F.cross_entropy(3 * similarity.T[present], share.T)
    got = garevla.info_nce(similarity, 3.0, targets)
    assert relative_error(got, (rows + columns) / 2) < 1e-14


def increments_of(texts: int, videos: int):
    psi = random_psi(16, 2).double()
    text, frames, mask = random_batch(texts, videos, 4, 16, least_frames=2)
    dense = garevla.gare_increments(text, frames, psi, mask)
    return garevla.gare_pairs(text, frames, psi, mask).increments, dense, (text, frames)


@pytest.mark.parametrize(("texts", "videos"), [(2, 2), (9, 4), (3, 8)])
def test_regularisers_of_factored_increments(texts: int, videos: int):
    factored, dense, inputs = increments_of(texts, videos)
    for got, want in (
        (garevla.trust_region(factored, 1e3), reference.trust_region(dense, 1e3)),
        (garevla.direction_diversity(factored, 1.5), reference.direction_diversity(dense, 1.5)),
        (garevla.information_bottleneck(factored), reference.information_bottleneck(dense)),
        (
            garevla.information_bottleneck(factored, "mean"),
            reference.information_bottleneck(dense, reduction="mean"),
        ),
    ):
        assert relative_error(got, want) < 1e-12
        for a, b in zip(
            torch.autograd.grad(got, inputs, retain_graph=True),
            torch.autograd.grad(want, inputs, retain_graph=True),
            strict=True,
        ):
            assert relative_error(a, b) < 1e-10


def test_trust_region_stops_below_its_floor():
    factored, _, (text, _) = increments_of(6, 6)
    free = garevla.trust_region(factored, 1e3)
    assert free < 0
    stopped = garevla.trust_region(factored, -0.5 * free.item())
    assert stopped == 0
    (gradient,) = torch.autograd.grad(stopped, text, retain_graph=True)
    assert gradient.eq(0).all()
    held = garevla.trust_region(factored, -2 * free.item())
    assert torch.equal(held, free)


def test_direction_diversity_without_gradients():
    factored, dense, _ = increments_of(4, 5)
    with torch.no_grad():
        value = garevla.direction_diversity(factored)
    assert relative_error(value, reference.direction_diversity(dense)) < 1e-12


def test_identical_texts_give_finite_gradients():
    psi = random_psi(16).double()
    text = torch.randn(1, 16, dtype=torch.float64).repeat(3, 1).requires_grad_()
    frames = torch.randn(3, 2, 16, dtype=torch.float64)
    garevla.GareLoss(psi)(text, frames, 20.0).loss.backward()
    assert text.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in psi.parameters())


def test_terms_of_weight_zero_are_not_computed():
    psi = random_psi(16)
    text, frames, mask = random_batch(4, 4, 3, 16, torch.float32)
    out = garevla.GareLoss(psi, beta=0, lambda_direction=0, lambda_trust=0)(
        text, frames, 20.0, mask
    )
    assert (out.bottleneck, out.direction, out.trust_region) == (None, None, None)
    assert torch.equal(out.loss, out.contrastive)
    assert out.similarity is None


def test_similarity_on_request_and_targets():
    psi = random_psi(16)
    text, frames, mask = random_batch(5, 3, 3, 16, torch.float32)
    targets = torch.tensor([0, 1, 2, 2, 0])
    out = garevla.GareLoss(psi)(text, frames, 20.0, mask, targets=targets, return_similarity=True)
    want = garevla.gare_similarity(text, frames, psi, mask)
    assert torch.equal(out.similarity, want)
    assert not out.similarity.requires_grad
    assert torch.equal(out.contrastive, garevla.info_nce(want, 20.0, targets))


def test_logit_scale_learns():
    psi = random_psi(16)
    text, frames, _ = random_batch(4, 4, 3, 16, torch.float32)
    scale = torch.tensor(20.0, requires_grad=True)
    garevla.GareLoss(psi)(text, frames, scale).loss.backward()
    assert scale.grad.abs() > 0


def test_training_lowers_the_loss():
    psi = random_psi(16)
    text, frames, _ = random_batch(8, 8, 3, 16, torch.float32)
    optimiser = torch.optim.Adam([text, frames, *psi.parameters()], lr=0.02)
    loss = garevla.GareLoss(psi)
    values = []
    for _ in range(30):
        optimiser.zero_grad()
        value = loss(text, frames, 20.0).loss
        value.backward()
        optimiser.step()
        values.append(value.item())
    assert values[-1] < 0.2 * values[0]
