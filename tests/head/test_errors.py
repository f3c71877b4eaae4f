"""Bad input: an error that names the argument."""

from __future__ import annotations

import logging
import subprocess
import sys
from typing import Any

import pytest
import torch

import garevla
from garevla import CrossAttentionPsi, GareLoss, gare_similarity
from garevla.increments.base import IncrementNetwork
from tests.helpers import random_batch, random_gap_mlp, random_psi


@pytest.fixture
def psi() -> CrossAttentionPsi:
    return CrossAttentionPsi(8)


TEXT, FRAMES = torch.randn(3, 8), torch.randn(3, 4, 8)


@pytest.mark.parametrize(
    ("text", "frames", "mask", "message"),
    [
        (TEXT[0], FRAMES, None, r"text_features must have shape \(A, D\)"),
        (TEXT[:, :6], FRAMES, None, r"text_features must have shape \(A, 8\)"),
        (TEXT[:0], FRAMES, None, "text_features holds no text"),
        (TEXT, FRAMES[:, 0], None, r"frame_features must have shape \(B, F, D\)"),
        (TEXT, FRAMES[..., :6], None, r"frame_features must have shape \(B, F, 8\)"),
        (TEXT, FRAMES[:0], None, "frame_features is empty"),
        (TEXT, FRAMES[:, :0], None, "frame_features is empty"),
        (TEXT, FRAMES, torch.ones(3, 5), r"frame_mask must have shape \(B, F\) = \(3, 4\)"),
        (TEXT, FRAMES, torch.full((3, 4), 0.5), "frame_mask must hold only 0"),
        (TEXT, FRAMES, torch.tensor([[1] * 4, [0] * 4, [1] * 4]), r"positions \[1\]"),
        (TEXT.to("meta"), FRAMES, None, "share a device"),
        (TEXT, FRAMES, torch.ones(3, 4, device="meta"), "frame_mask is on meta"),
    ],
)
def test_bad_tensors(psi, text, frames, mask, message):
    with pytest.raises(ValueError, match=message):
        gare_similarity(text, frames, psi, mask)


def test_bad_types(psi):
    with pytest.raises(TypeError, match=r"text_features must be a torch\.Tensor"):
        gare_similarity(TEXT.numpy(), FRAMES, psi)
    with pytest.raises(TypeError, match="frame_features must be a floating-point"):
        gare_similarity(TEXT, FRAMES.long(), psi)
    with pytest.raises(TypeError, match="frame_mask must be a bool"):
        gare_similarity(TEXT, FRAMES, psi, [[1] * 4] * 3)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_bad_temperature(psi, temperature):
    with pytest.raises(ValueError, match="pool_temperature"):
        gare_similarity(TEXT, FRAMES, psi, pool_temperature=temperature)


@pytest.mark.parametrize(
    "argument", ["beta", "lambda_direction", "lambda_trust", "trust_floor", "alpha"]
)
def test_bad_weights(psi, argument):
    with pytest.raises(ValueError, match=argument):
        GareLoss(psi, **{argument: -0.1})


def test_loss_of_unequal_numbers_needs_targets(psi):
    loss = GareLoss(psi)
    with pytest.raises(ValueError, match="give targets"):
        loss(TEXT[:2], FRAMES, 20.0)
    for targets, message in (
        (torch.tensor([0, 3]), "video indices"),
        (torch.tensor([0, -1]), "video indices"),
        (torch.tensor([0]), "shape"),
        (torch.tensor([0.0, 1.0]), "int64"),
    ):
        with pytest.raises(ValueError, match=message):
            loss(TEXT[:2], FRAMES, 20.0, targets=targets)


def test_bad_psi_arguments():
    with pytest.raises(ValueError, match="num_heads must divide dim"):
        CrossAttentionPsi(8, 3)
    with pytest.raises(ValueError, match="dropout must be in"):
        CrossAttentionPsi(8, dropout=1.0)


def test_unknown_backend(psi):
    with pytest.raises(ValueError, match="backend must be 'auto' or one of"):
        gare_similarity(TEXT, FRAMES, psi, backend="cuda")
    with pytest.raises(ValueError, match="backend must be 'auto' or one of"):
        GareLoss(psi, backend="fast")


@pytest.mark.parametrize("prefix", ["psi.", "module.psi.", "agent.psi.", ""])
def test_published_checkpoints(psi, prefix, caplog):
    source = CrossAttentionPsi(8)
    published = {prefix + name: value for name, value in source.state_dict().items()}
    published |= {
        prefix + "layers.0.linear2.weight": torch.ones(8, 8),
        prefix + "layers.0.mlp.0.bias": torch.ones(32),
        prefix + "log_std_proj.weight": torch.ones(8, 8),
        "clip.logit_scale": torch.ones(()),
    }
    with caplog.at_level(logging.INFO, logger="garevla"):
        psi.load_official_state_dict(published)
    assert "ignored 3 parameters" in caplog.text
    for name, value in source.state_dict().items():
        assert torch.equal(psi.state_dict()[name], value)


def test_several_published_layers_count_as_their_last(psi):
    last = CrossAttentionPsi(8).state_dict()
    published = {"psi." + n: torch.zeros_like(v) for n, v in last.items()}
    published |= {"psi." + n.replace("layers.0", "layers.1"): v for n, v in last.items()}
    psi.load_official_state_dict(published)
    assert all(torch.equal(psi.state_dict()[n], v) for n, v in last.items())


def test_published_checkpoint_that_does_not_fit(psi):
    state = {"psi." + name: value for name, value in CrossAttentionPsi(8).state_dict().items()}
    with pytest.raises(KeyError, match=r"mean_proj\.weight"):
        psi.load_official_state_dict(
            {k: v for k, v in state.items() if k != "psi.mean_proj.weight"}
        )
    with pytest.raises(ValueError, match=r"psi\.mean_proj\.bias has shape \(4,\)"):
        psi.load_official_state_dict(state | {"psi.mean_proj.bias": torch.ones(4)})


def test_the_core_needs_torch_and_numpy_only():
    code = (
        "import sys, garevla; heavy = {'open_clip', 'decord', 'av', 'torchvision', 'pandas', "
        "'matplotlib', 'jsonargparse'}; sys.exit(', '.join(heavy & set(sys.modules)) or 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_importing_the_core_costs_little_beyond_torch():
    # torch._dynamo takes more than a second, triton a quarter.
    code = "import sys, garevla; print({'torch._dynamo', 'triton'} & set(sys.modules) or 'neither')"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "neither", result.stderr


def test_public_names():
    assert set(garevla.__all__) <= set(dir(garevla))


def test_what_is_said_of_second_derivatives_is_true(backend: str) -> None:
    text, frames, _ = random_batch(4, 4, 3, 16)

    def penalty(psi: IncrementNetwork, **options: Any) -> torch.Tensor:
        loss = garevla.GareLoss(psi.double(), **options)(text, frames, 10.0).loss
        (gradient,) = torch.autograd.grad(loss, text, create_graph=True)
        return gradient.square().sum()

    message = "no second derivatives .* of backend 'eager' have, .* GareLoss .* lambda_direction=0"
    for psi in (
        random_psi(16),
        random_gap_mlp(16),
        random_psi(16, dropout=0.3, dropout_mode="pair"),
    ):
        with pytest.raises(RuntimeError, match=message):
            penalty(psi)
        # What the message says to do.
        if isinstance(psi, garevla.CrossAttentionPsi) and psi.dropout == 0:
            with garevla.use_backend("eager"):
                (second,) = torch.autograd.grad(penalty(psi, lambda_direction=0.0), text)
            assert second.abs().sum() > 0
        else:
            with garevla.use_backend("eager"), pytest.raises(RuntimeError, match=message):
                penalty(psi, lambda_direction=0.0)


def test_tensors_without_numbers(psi: CrossAttentionPsi) -> None:
    text, frames = TEXT.to("meta"), FRAMES.to("meta")
    message = "frame_features must hold numbers, got a tensor on device meta"
    for function in (
        lambda: gare_similarity(text, frames, psi),
        lambda: garevla.gare_increments(text, frames, psi),
        lambda: GareLoss(psi)(text, frames, 10.0),
        lambda: garevla.DiscoVLALoss()(text, frames, 10.0),
        lambda: garevla.frame_level_similarity(frames, frames, 10.0),
    ):
        with pytest.raises(TypeError, match=message):
            function()
