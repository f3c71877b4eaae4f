"""Laws of the pair operation, each against the published formulas in float64."""

from __future__ import annotations

import math

import pytest
import torch

import garevla
from garevla.ops.eager import pairs
from garevla.reference import gare as reference
from tests.helpers import check_padding, random_batch, random_psi, relative_error

pytestmark = pytest.mark.usefixtures("backend")

SIZES = [  # texts, videos, frames, dim, heads
    (1, 1, 1, 8, 1),
    (1, 5, 3, 16, 2),
    (5, 1, 12, 32, 1),
    (7, 11, 5, 30, 3),
    (13, 6, 2, 24, 8),
    (4, 4, 17, 48, 1),
]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("masked", [False, True])
def test_similarity_and_increments_match_the_published_formulas(size, masked):
    *shape, heads = size
    psi = random_psi(shape[-1], heads).double()
    text, frames, mask = random_batch(*shape)
    mask = mask if masked else None
    expected = reference.pairs(text, frames, psi, mask)
    assert relative_error(garevla.gare_similarity(text, frames, psi, mask), expected[0]) < 1e-12
    assert relative_error(garevla.gare_increments(text, frames, psi, mask), expected[1]) < 1e-12


@pytest.mark.parametrize("size", [(5, 5, 4, 16, 2), (8, 8, 12, 24, 1)], ids=str)
@pytest.mark.parametrize("lambda_direction", [0.0, 0.3])
def test_whole_loss_and_gradients_match_the_published_formulas(size, lambda_direction):
    *shape, heads = size
    psi = random_psi(shape[-1], heads).double()
    text, frames, mask = random_batch(*shape, least_frames=2)
    weights = {"lambda_direction": lambda_direction, "lambda_trust": 0.2, "trust_floor": 90.0}
    inputs = [text, frames, *(p for n, p in psi.named_parameters() if "k_proj.bias" not in n)]
    expected = reference.loss(text, frames, psi, 30.0, mask, beta=0.01, **weights)
    actual = garevla.GareLoss(psi, beta=0.01, **weights)(text, frames, 30.0, mask).loss
    assert relative_error(actual, expected) < 1e-12
    for got, want in zip(
        torch.autograd.grad(actual, inputs), torch.autograd.grad(expected, inputs), strict=True
    ):
        assert relative_error(got, want) < 1e-10


@pytest.mark.parametrize("lambda_direction", [0.0, 0.3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_bottleneck_of_videos_of_one_frame(dtype: torch.dtype, lambda_direction: float):
    """No text changes their increments: σ is exactly its floor, and has no gradient."""
    psi = random_psi(16, 2).to(dtype)
    text, frames, _ = random_batch(7, 7, 3, 16, dtype)
    mask = torch.tensor([True, False, False]).expand(7, 3)
    loss = garevla.GareLoss(psi, lambda_direction=lambda_direction)
    actual = loss(text, frames, 20.0, mask).bottleneck
    mean = reference.pairs(text[:1].detach(), frames, psi, mask).increments[0]
    expected = (0.5 * (mean.square() + 1e-12 - 1) - math.log(1e-6)).sum(1).mean()
    # A hundred roundings one after the other; noise in σ would be off by a thousand times that.
    tolerance = 100 * torch.finfo(dtype).eps
    assert relative_error(actual, expected) < tolerance
    grad_text, *found = torch.autograd.grad(actual, [text, frames, *psi.mean_proj.parameters()])
    assert grad_text.eq(0).all()
    wanted = torch.autograd.grad(expected, [frames, *psi.mean_proj.parameters()])
    for got, want in zip(found, wanted, strict=True):
        assert relative_error(got, want) < tolerance


@pytest.mark.parametrize("backend", ["eager"], indirect=True)
def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch):
    psi = random_psi(16, 2).double()
    text, frames, mask = random_batch(7, 7, 4, 16)
    loss = garevla.GareLoss(psi)
    inputs = [text, frames, psi.mean_proj.weight]

    def outcome():
        out = loss(text, frames, 20.0, mask).loss
        return [out, *torch.autograd.grad(out, inputs)]

    whole = outcome()
    monkeypatch.setattr(pairs, "CHUNK_ELEMENTS", 1)
    monkeypatch.setattr("garevla.ops.eager.direction.CHUNK_ELEMENTS", 1)
    for got, want in zip(outcome(), whole, strict=True):
        assert relative_error(got, want) < 1e-13


@pytest.mark.parametrize("poison", [torch.nan, torch.inf, 1e30])
def test_padding_has_no_effect(poison: float):
    check_padding(garevla.GareLoss(random_psi(16, 2).double()), poison)


def test_padding_may_stand_anywhere():
    psi = random_psi(16).double()
    text, frames, _ = random_batch(4, 3, 6, 16)
    mask = torch.tensor([0, 1, 1, 0, 1, 0]).expand(3, 6)
    want = garevla.gare_similarity(text, frames[:, [1, 2, 4]], psi)
    assert relative_error(garevla.gare_similarity(text, frames, psi, mask), want) < 1e-14


def test_permutations_of_texts_videos_and_frames():
    psi = random_psi(16, 4).double()
    text, frames, mask = random_batch(6, 5, 4, 16)
    similarity = garevla.gare_similarity(text, frames, psi, mask)
    rows, columns, order = torch.randperm(6), torch.randperm(5), torch.randperm(4)
    permuted = garevla.gare_similarity(
        text[rows], frames[columns][:, order], psi, mask[columns][:, order]
    )
    assert relative_error(permuted, similarity[rows][:, columns]) < 1e-13


def test_each_pair_is_on_its_own():
    psi = random_psi(16).double()
    text, frames, mask = random_batch(4, 3, 5, 16)
    similarity = garevla.gare_similarity(text, frames, psi, mask)
    alone = garevla.gare_similarity(text[2:3], frames[1:2], psi, mask[1:2])
    assert relative_error(alone, similarity[2:3, 1:2]) < 1e-13


def test_non_contiguous_inputs():
    psi = random_psi(16).double()
    text, frames, _ = random_batch(4, 3, 5, 16)
    strided_text = torch.stack([text, text], dim=-1)[..., 0]
    strided_frames = frames.transpose(0, 2).contiguous().transpose(0, 2)
    assert not strided_text.is_contiguous()
    assert not strided_frames.is_contiguous()
    got = garevla.gare_similarity(strided_text, strided_frames, psi)
    assert relative_error(got, garevla.gare_similarity(text, frames, psi)) < 1e-14


@pytest.mark.parametrize("lambda_direction", [0.0, 0.5])
def test_gradcheck_of_the_whole_loss(lambda_direction: float):
    psi = random_psi(6, 2).double()
    text, frames, mask = random_batch(3, 3, 2, 6)
    # The text of pair (i, i) far from 0 keeps every term away from its kinks.
    weights = {"beta": 0.1, "lambda_trust": 0.5, "trust_floor": 1e3}
    loss = garevla.GareLoss(psi, lambda_direction=lambda_direction, **weights)
    scale = torch.tensor(5.0, dtype=torch.float64, requires_grad=True)

    def function(text, frames, scale, *parameters):
        return torch.func.functional_call(
            loss, dict(zip(names, parameters, strict=True)), (text, frames, scale, mask)
        ).loss

    names, parameters = zip(*loss.named_parameters(), strict=True)
    assert torch.autograd.gradcheck(function, (text, frames, scale, *parameters), fast_mode=True)


def test_published_dropout_once_per_video():
    psi = random_psi(16, dropout=0.5).double().train()
    text, frames, mask = random_batch(4, 3, 5, 16)
    torch.manual_seed(3)
    similarity = garevla.gare_similarity(text, frames, psi, mask)
    torch.manual_seed(3)
    drawn = psi._dropout_mask(3, frames).squeeze(1)
    assert set(drawn.unique().tolist()) == {0.0, 2.0}
    expected = reference.pairs(text, frames, psi, mask, dropout_mask=drawn)
    assert relative_error(similarity, expected.similarity) < 1e-12
    assert not torch.equal(similarity, garevla.gare_similarity(text, frames, psi, mask))
    psi.eval()
    assert torch.equal(
        garevla.gare_similarity(text, frames, psi, mask),
        garevla.gare_similarity(text, frames, psi, mask),
    )


def test_runs_repeat_bit_for_bit():
    psi = random_psi(32)
    text, frames, mask = random_batch(16, 16, 6, 32, torch.float32)
    loss = garevla.GareLoss(psi)
    outcomes = []
    for _ in range(2):
        out = loss(text, frames, 20.0, mask).loss
        outcomes.append([out, *torch.autograd.grad(out, [text, frames])])
    assert all(torch.equal(a, b) for a, b in zip(*outcomes, strict=True))


@pytest.mark.parametrize("training", [False, True])
def test_compiles_without_graph_breaks(training: bool):
    psi = random_psi(16)
    text, frames, mask = random_batch(5, 5, 4, 16, torch.float32)
    if training:
        loss = garevla.GareLoss(psi, lambda_direction=0.0)

        def function(text, frames):
            return loss(text, frames, 20.0, mask).loss
    else:

        def function(text, frames):
            return garevla.gare_similarity(text, frames, psi, mask)

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    assert relative_error(compiled(text, frames), function(text, frames)) < 1e-5
