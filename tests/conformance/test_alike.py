"""Frames that are nearly alike: increments hardly vary over the texts, and the gradient of their
divergence, about one over their variance, turns roundings of the mean into gradients."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

import garevla
from tests.conformance.targets import Target, on_targets
from tests.helpers import random_psi, relative_error

DIM, FRAMES = 16, 8


@pytest.mark.parametrize(("spread", "bound"), [(1.0, 2e-6), (1e-2, 2e-4), (1e-4, 3e-3)])
@on_targets()
def test_the_divergence_keeps_its_gradient(target: Target, spread: float, bound: float):
    check_gradient(target, spread, bound, batch=8)


def check_gradient(target: Target, spread: float, bound: float, batch: int) -> None:
    psi = random_psi(DIM)
    text = torch.randn(batch, DIM, dtype=torch.float64)
    frames = torch.randn(batch, 1, DIM, dtype=torch.float64)
    frames = frames + spread * torch.randn(batch, FRAMES, DIM, dtype=torch.float64)

    def gradient(backend: str, dtype: torch.dtype, device: str) -> Tensor:
        network = copy.deepcopy(psi).to(device, dtype)
        # Streaming: of the exact diversity the pairs' own coefficients would be kept.
        loss = garevla.GareLoss(network, lambda_direction=0.0, backend=backend)
        loss(text.to(device, dtype), frames.to(device, dtype), 20.0).loss.backward()
        weight = network.layers[0].cross_attn.v_proj.weight
        assert weight.grad is not None
        return weight.grad.cpu()

    want = gradient("eager", torch.float64, "cpu")
    assert relative_error(gradient(target.backend, torch.float32, target.device), want) < bound
