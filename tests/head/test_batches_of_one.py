"""One text or one video: what compares texts, or videos, is 0 and has no gradient."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

import garevla
from garevla.increments.base import IncrementNetwork
from garevla.reference import gare as reference
from tests.conformance.targets import TRITON
from tests.helpers import random_batch, random_gap_mlp, random_psi, relative_error

NETWORKS: dict[str, Callable[[], IncrementNetwork]] = {
    "cross attention": lambda: random_psi(16, 2),
    "dropout per pair": lambda: random_psi(16, dropout=0.3, dropout_mode="pair"),
    "gap MLP": lambda: random_gap_mlp(16),
}
DIRECTIONS: dict[str, dict[str, Any]] = {
    "exact": {},
    "sampled": {"direction_samples": 2},
    "off": {"lambda_direction": 0.0},
}
SIZES = [(1, 1), (1, 4), (4, 1)]

networks = pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
directions = pytest.mark.parametrize("direction", DIRECTIONS.values(), ids=DIRECTIONS)
sizes = pytest.mark.parametrize(("texts", "videos"), SIZES)


def batch(texts: int, videos: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    text, frames, mask = random_batch(texts, videos, 3, 16, least_frames=2)
    return text, frames, mask, torch.zeros(texts, dtype=torch.int64)


@networks
@directions
@sizes
def test_terms(backend: str, network: Any, direction: Any, texts: int, videos: int):
    text, frames, mask, targets = batch(texts, videos)
    psi = network().double()
    loss = garevla.GareLoss(psi, trust_floor=1e3, **direction)
    with garevla.dropout_seed(7):
        out = loss(text, frames, 10.0, mask, targets=targets)
    with garevla.dropout_seed(7):
        pairs = garevla.gare_pairs(text, frames, psi, mask)
    increments = pairs.increments.materialize()
    assert (
        relative_error(out.contrastive, garevla.info_nce(pairs.similarity, 10.0, targets)) < 1e-12
    )
    terms = {
        "bottleneck": reference.information_bottleneck(increments) if texts > 1 else None,
        "trust_region": reference.trust_region(increments, 1e3) if videos > 1 else None,
    }
    if not direction:
        terms["direction"] = reference.direction_diversity(increments) if videos > 1 else None
    for name, expected in terms.items():
        found = getattr(out, name)
        if expected is None:
            assert found == 0
            assert not found.requires_grad
        else:
            assert relative_error(found, expected) < 1e-10
    inputs = [text, frames, *psi.parameters()]
    gradients = torch.autograd.grad(out.loss, inputs, allow_unused=True, materialize_grads=True)
    assert all(gradient.isfinite().all() for gradient in gradients)
    # Of one pair, everything is 0.
    assert (out.loss == 0) == (texts == videos == 1)
    assert any(gradient.any() for gradient in gradients) == (texts > 1 or videos > 1)


@networks
@sizes
def test_public_regularizers(network: Any, texts: int, videos: int):
    text, frames, mask, _ = batch(texts, videos)
    increments = garevla.gare_pairs(text, frames, network().double(), mask).increments
    for term, compared in (
        (garevla.information_bottleneck, texts),
        (partial(garevla.trust_region, trust_floor=1e3), videos),
        (garevla.direction_diversity, videos),
    ):
        value = term(increments)
        assert (value == 0) == (compared == 1)
        assert value.requires_grad == (compared > 1)


@directions
@sizes
@pytest.mark.gpu
def test_triton(direction: Any, texts: int, videos: int):
    _check_triton("cuda", direction, texts, videos)


@directions
@sizes
@pytest.mark.skipif(TRITON.device == "cuda", reason="kernels run on the GPU")
def test_interpreted_triton(direction: Any, texts: int, videos: int):
    TRITON.require()
    _check_triton("cpu", direction, texts, videos)


def _check_triton(device: str, direction: Any, texts: int, videos: int) -> None:
    text, frames, mask, targets = (tensor.to(device) for tensor in batch(texts, videos))
    text, frames = (each.detach().float().requires_grad_() for each in (text, frames))
    psi = random_psi(16, 2).to(device)
    found = {}
    for backend in ("eager", "triton"):
        torch.manual_seed(0)
        loss = garevla.GareLoss(psi, backend=backend, **direction)(
            text, frames, 10.0, mask, targets=targets
        )
        gradients = torch.autograd.grad(loss.loss, [text, frames])
        found[backend] = [loss.loss, *gradients]
    for got, want in zip(found["triton"], found["eager"], strict=True):
        if texts == videos == 1:
            assert got.eq(0).all()
        else:
            assert relative_error(got, want) < 1e-4


@pytest.mark.parametrize("joint", [False, True])
@sizes
def test_discovla(joint: bool, texts: int, videos: int):
    text, frames, mask, targets = batch(texts, videos)
    captions = torch.randn(texts, 3, 16, dtype=torch.float64, requires_grad=True)
    loss = garevla.GareDiscoVLALoss(random_psi(16)) if joint else garevla.DiscoVLALoss()
    out = loss.double()(text, frames, 10.0, mask, captions, targets=targets)
    gradients = torch.autograd.grad(
        out.loss, [text, frames, captions], allow_unused=True, materialize_grads=True
    )
    assert all(gradient.isfinite().all() for gradient in gradients)
    if texts == videos == 1:
        assert out.loss == out.contrastive == out.frame == out.distillation == 0
        assert not any(gradient.any() for gradient in gradients)
    else:
        assert out.frame > 0
        assert out.distillation > 0
        assert gradients[0].any()
