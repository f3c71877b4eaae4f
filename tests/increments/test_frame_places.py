"""Padded frames are left out of the products with ψ's weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import garevla
from garevla.increments.low_rank import cross_attention, frame_places
from garevla.increments.low_rank.frame_places import FramePlaces
from tests.helpers import random_batch, random_psi, relative_error

KINDS: dict[str, dict[str, Any]] = {
    "no dropout": {},
    "dropout per video": {"dropout": 0.3},
    "dropout per pair": {"dropout": 0.3, "dropout_mode": "pair"},
}


@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_changes(kind: str, heads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    psi = random_psi(12, heads, **KINDS[kind]).double()
    text, frames, mask = random_batch(5, 5, 6, 12, least_frames=2)
    mask[0, 2:] = False
    criterion = garevla.GareLoss(psi, beta=0.01, lambda_direction=0.3)
    leaves = [text, frames, *(p for name, p in psi.named_parameters() if "k_proj.bias" not in name)]

    def loss_and_gradients() -> list[Tensor]:
        torch.manual_seed(3)
        with garevla.dropout_seed(3):
            loss = criterion(text, frames, 20.0, mask).loss
        return [loss, *torch.autograd.grad(loss, leaves)]

    assert FramePlaces.of(mask).index is not None
    found = loss_and_gradients()
    monkeypatch.setattr(frame_places, "LEAST_PADDING", 2)
    assert FramePlaces.of(mask).index is None
    for got, want in zip(found, loss_and_gradients(), strict=True):
        assert relative_error(got, want) < 1e-9
    assert found[2][~mask].abs().max() == 0


@pytest.mark.parametrize("kind", KINDS)
def test_only_valid_frames_are_multiplied(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    psi = random_psi(12, **KINDS[kind])
    text, frames, mask = random_batch(4, 4, 6, 12, torch.float32)
    mask[0, 2:] = False
    rows = []

    def counted(x: Tensor, *others: Tensor) -> Tensor:
        rows.append(x.shape[0])
        return torch.nn.functional.linear(x, *others)

    monkeypatch.setattr(cross_attention, "linear", counted)
    garevla.gare_similarity(text, frames, psi, mask)
    assert len(rows) >= 3
    assert set(rows) == {int(mask.sum())}
    rows.clear()
    garevla.gare_similarity(text, frames, psi)
    assert set(rows) == {mask.numel()}


def test_videos_without_padding_are_not_moved() -> None:
    assert FramePlaces.of(torch.ones(3, 4, dtype=torch.bool)).index is None
    frames = torch.randn(3, 4, 5)
    assert FramePlaces.of(torch.ones(3, 4, dtype=torch.bool)).rows(frames).data_ptr() == (
        frames.data_ptr()
    )


def test_frames_return_to_their_places() -> None:
    mask = torch.tensor([[True, False, False], [True, True, False]])
    places = FramePlaces.of(mask)
    frames = torch.randn(2, 3, 4)
    assert torch.equal(places.videos(places.rows(frames)), frames * mask.unsqueeze(-1))
    by_head = places.by_head(torch.stack([places.rows(frames), 2 * places.rows(frames)], dim=1))
    kept = frames * mask.unsqueeze(-1)
    assert torch.equal(by_head, torch.cat([kept, 2 * kept], dim=1))
    videos = torch.randn(2, 1, 4)
    assert torch.equal(places.of_videos(videos).squeeze(1), videos[[0, 1, 1], 0])
