"""Padded frames as the published code has them: seen by ψ, left out of the pooling."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import garevla
from garevla.increments.low_rank.cross_attention import CrossAttentionPsi
from garevla.reference import gare as reference
from tests.helpers import GOLDEN, Golden, random_batch, random_psi, relative_error

WEIGHTS = {"beta": 0.01, "lambda_direction": 0.3, "lambda_trust": 0.2, "trust_floor": 1e3}
SEED = 11


@pytest.fixture
def golden() -> Golden:
    return Golden(GOLDEN / "official_gare_small.npz")


def golden_psi(golden: Golden, padding: str) -> CrossAttentionPsi:
    psi = CrossAttentionPsi(golden.meta["D"], golden.meta["heads"], padding=padding).double()
    psi.load_official_state_dict(golden.checkpoint())
    return psi


@pytest.mark.usefixtures("backend")
def test_scores_and_increments_of_the_published_code(golden: Golden) -> None:
    arguments = golden["text"], golden["frames"], golden_psi(golden, "published"), golden["mask"]
    similarity = garevla.gare_similarity(*arguments, pool_temperature=golden.meta["temp"])
    assert relative_error(similarity, golden["similarity"]) < 1e-12
    assert relative_error(garevla.gare_increments(*arguments), golden["delta"]) < 1e-12


def test_the_formulas_written_down_are_the_published_codes(golden: Golden) -> None:
    psi = golden_psi(golden, "published")
    found = reference.pairs(
        golden["text"], golden["frames"], psi, golden["mask"], padding="published"
    )
    assert relative_error(found.similarity, golden["similarity"]) < 1e-12
    assert relative_error(found.increments, golden["delta"]) < 1e-12


def test_by_default_padding_is_ignored(golden: Golden) -> None:
    """Videos without padding alone have the published scores then."""
    assert garevla.CrossAttentionPsi(8).padding == "ignored"
    text, frames, mask = golden["text"], golden["frames"], golden["mask"].bool()
    similarity = garevla.gare_similarity(text, frames, golden_psi(golden, "ignored"), mask)
    whole = mask.all(dim=1)
    assert relative_error(similarity[:, whole], golden["similarity"][:, whole]) < 1e-12
    assert relative_error(similarity[:, ~whole], golden["similarity"][:, ~whole]) > 1e-2


def gradients(loss: Tensor, psi: CrossAttentionPsi, *features: Tensor) -> list[Tensor]:
    parameters = [value for name, value in psi.named_parameters() if "k_proj.bias" not in name]
    return list(torch.autograd.grad(loss, [*features, *parameters]))


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("mode", ["no dropout", "pair"])
def test_the_loss_and_its_gradients(heads: int, mode: str) -> None:
    dropout = 0.0 if mode == "no dropout" else 0.3
    psi = random_psi(12, heads, dropout=dropout, dropout_mode="pair", padding="published").double()
    text, frames, mask = random_batch(6, 6, 5, 12, least_frames=2)
    masks = reference.pair_dropout_mask(psi, SEED, 6, 6) if dropout else 1.0
    expected = reference.loss(
        text, frames, psi, 20.0, mask, dropout_mask=masks, padding="published", **WEIGHTS
    )
    with garevla.dropout_seed(SEED):
        loss = garevla.GareLoss(psi, **WEIGHTS)(text, frames, 20.0, mask).loss
    assert relative_error(loss, expected) < 1e-12
    wanted = gradients(expected, psi, text, frames)
    assert wanted[1][~mask].abs().max() > 1e-4  # through padded frames
    for got, want in zip(gradients(loss, psi, text, frames), wanted, strict=True):
        assert relative_error(got, want) < 1e-8


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_in_lower_precision(dtype: torch.dtype) -> None:
    psi = random_psi(64, padding="published")
    text, frames, mask = random_batch(9, 7, 6, 64, torch.float32)
    text, frames = text.to(dtype), frames.to(dtype)
    arguments = text.double(), frames.double(), psi.double(), mask
    exact = reference.pairs(*arguments, padding="published").similarity
    psi.float()
    plain = reference.pairs(text.float(), frames.float(), psi, mask, padding="published")
    got = garevla.gare_similarity(text, frames, psi, mask)
    assert relative_error(got, exact) < 3 * relative_error(plain.similarity, exact) + 1e-7


def test_kept_videos_have_the_same_scores(golden: Golden) -> None:
    text, frames, mask = golden["text"], golden["frames"], golden["mask"]
    psi = golden_psi(golden, "published").eval()
    videos = garevla.encode_videos(frames, psi, mask)
    expected = garevla.gare_similarity(text, frames, psi, mask)
    assert torch.equal(garevla.gare_similarity(text, videos), expected)
    with pytest.raises(ValueError, match=r"padding='published'.*no compact form"):
        garevla.encode_videos(frames, psi, mask, compact=True)


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(ValueError, match=r"padding must be one of .*'published'.*got 'leaky'"):
        CrossAttentionPsi(8, padding="leaky")
