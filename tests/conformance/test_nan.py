"""What is padded takes no part, and a NaN that is not is not hidden."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import pad

import garevla
from garevla import CrossAttentionPsi, GapMLPPsi
from garevla.increments.low_rank.factors import PAIR_FACTORS
from tests.conformance.operations import Inputs, inputs_of, outputs, random_mask
from tests.conformance.targets import Target, on_operations, on_targets
from tests.helpers import random_batch, random_psi, relative_error


@pytest.mark.parametrize("name", [name for name in PAIR_FACTORS if name != "frame_mask"])
@on_operations(labels=["pair_terms"])
def test_nan_stays_with_its_video(target: Target, operation: str, name: str):
    target.require_that_nan_is_dropped()
    inputs = inputs_of(operation, (9, 5, 3, 16, 1), torch.float32, target.device)
    plain = outputs(operation, target.backend, inputs)
    broken = inputs[name].detach().clone()
    broken[2].view(-1)[0] = torch.nan
    found = outputs(operation, target.backend, inputs | {name: broken})
    want = outputs(operation, "eager", inputs | {name: broken})
    assert want[0][2].isnan().all()
    others = [0, 1, 3, 4]
    for got, exact, before in zip(found, want, plain, strict=True):
        assert got[2][exact[2].isnan()].isnan().all()
        assert relative_error(got[others], before[others]) < 1e-6


@pytest.mark.parametrize("lambda_direction", [0.0, 0.01])
@on_targets()
def test_nan_in_padding_takes_no_part(target: Target, lambda_direction: float):
    psi = random_psi(16).to(target.device)
    text, frames, _ = (
        x.detach().to(target.device) for x in random_batch(5, 5, 4, 16, torch.float32)
    )
    mask = (torch.arange(7, device=target.device) < 4).expand(5, 7)
    padded = torch.full((5, 7, 16), torch.nan, device=target.device)
    padded[:, :4] = frames
    loss = garevla.GareLoss(psi, backend=target.backend, lambda_direction=lambda_direction)
    found = []
    for features, valid in ((frames, None), (padded, mask)):
        features = features.clone().requires_grad_()
        value = loss(text, features, 20.0, valid).loss
        found.append((value, torch.autograd.grad(value, features)[0][:, :4]))
    for got, want in zip(*found, strict=True):
        assert relative_error(got, want) < 1e-5


@pytest.mark.parametrize("network", [CrossAttentionPsi, GapMLPPsi])
@on_targets()
def test_a_zero_text_and_its_zero_video_score_nothing_and_leave_no_nan(
    target: Target, network: type[CrossAttentionPsi] | type[GapMLPPsi]
):
    psi = network(16)
    with torch.no_grad():
        for name, parameter in psi.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()  # the increments of a zero gap are zero then
    text, frames, _ = (x.detach() for x in random_batch(5, 5, 4, 16, torch.float64))
    text[1], frames[1] = 0, 0
    found = []
    for backend, device, dtype in (
        (target.backend, target.device, torch.float32),
        ("eager", "cpu", torch.float64),
    ):
        moved = copy.deepcopy(psi).to(device, dtype)
        leaves = [x.to(device, dtype).requires_grad_() for x in (text, frames)]
        scores = garevla.gare_similarity(*leaves, moved, backend=backend)
        assert scores[1, 1] == 0
        value = garevla.GareLoss(moved, backend=backend)(*leaves, 20.0).loss
        of_text, of_frames, *rest = torch.autograd.grad(value, [*leaves, *moved.parameters()])
        # In one: the key's bias has no gradient to compare with.
        found.append([scores, of_text, of_frames, torch.cat([x.flatten() for x in rest])])
    for got, want in zip(*found, strict=True):
        assert relative_error(got.cpu(), want) < 1e-4


@on_operations(labels=["pair_similarity", "pair_statistics with samples"])
def test_padding_takes_no_part(target: Target, operation: str):
    """Frames appended behind a mask change nothing, whatever their factors hold."""
    frames, more = 5, 9
    short = inputs_of(operation, (17, 3, frames, 24, 1), torch.float32, target.device)
    longer = appended(short, frames, more)
    kept = [*range(frames), more, more + 1]
    found, want = (outputs(operation, target.backend, x) for x in (longer, short))
    for got, plain in zip(found, want, strict=True):
        if got.shape != plain.shape:
            got = got[..., kept]
            got = got[..., kept, :] if got.dim() == 3 and got.shape[-2] == more + 2 else got
        # The sums' order may change, nothing else.
        assert relative_error(got, plain) < 1e-6


def appended(short: Inputs, frames: int, more: int, value: float = 1e30) -> Inputs:
    """The factors of one head with masked frames, whose factors are ``value``."""
    longer = {k: v.detach() if isinstance(v, Tensor) else v for k, v in short.items()}
    valid = [*range(frames)]
    hidden, basis = [*valid, more], [*valid, more, more + 1]
    rows = valid + [more + k for k in valid] + [2 * more + k for k in basis]
    places: dict[str, Any] = {
        "value_gram": (valid, valid, more, more),
        "hidden_gram": (hidden, hidden, more + 1, more + 1),
        "basis_gram": (basis, basis, more + 2, more + 2),
        "frame_gram": (valid, valid, more, more),
        "basis_frame": (basis, valid, more + 2, more),
        "rows": (rows, [*range(short["rows"].shape[2])], 3 * more + 2, short["rows"].shape[2]),
    }
    for name, (down, across, height, width) in places.items():
        factor = longer[name]
        wide = factor.new_full((len(factor), height, width), value)
        wide[:, torch.tensor(down)[:, None], torch.tensor(across)] = factor
        longer[name] = wide
    for name, filled in (("frame_mask", False), ("key_offset", value), ("key_bias", value)):
        longer[name] = pad(longer[name], (0, more - frames), value=filled)
    return longer


ALIGNMENT = ["frame_alignment"]


def frames_and_masks(target: Target) -> tuple[list[Tensor], list[Tensor]]:
    features = torch.randn(5, 5, 24), torch.randn(3, 6, 24)
    masks = random_mask(5, 5), random_mask(3, 6)
    return [x.to(target.device) for x in features], [x.to(target.device) for x in masks]


@on_operations(labels=ALIGNMENT)
def test_padded_frames_take_no_part(target: Target, operation: str):
    features, masks = frames_and_masks(target)

    def run(*features: Tensor) -> list[Tensor]:
        leaves = [x.detach().clone().requires_grad_() for x in features]
        found = garevla.frame_level_similarity(*leaves, 7.0, *masks, backend=target.backend)
        return [found, *torch.autograd.grad(found.square().sum(), leaves)]

    clean = run(*features)
    padded = (
        x.masked_fill(~mask.unsqueeze(2), torch.nan)
        for x, mask in zip(features, masks, strict=True)
    )
    found = run(*padded)
    assert all(torch.equal(got, want) for got, want in zip(found, clean, strict=True))
    for gradient, mask in zip(found[1:], masks, strict=True):
        assert not gradient[~mask].any()


@pytest.mark.filterwarnings("ignore:All-NaN", "ignore:invalid value")  # of the interpreter
@on_operations(labels=ALIGNMENT)
def test_nan_of_a_frame_is_not_hidden(target: Target, operation: str):
    (captions, frames), masks = frames_and_masks(target)
    captions[2, 0, 3] = frames[1, 2, 3] = torch.nan
    masks[0][2, 0] = masks[1][1, 2] = True
    bad = torch.zeros(5, 3, dtype=torch.bool, device=target.device)
    bad[2], bad[:, 1] = True, True
    for given in ([], masks):
        found = garevla.frame_level_similarity(
            captions, frames, 7.0, *given, backend=target.backend
        )
        assert torch.equal(found.isnan(), bad)
