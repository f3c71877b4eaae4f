"""Increments with a hidden layer per pair, against the formulas written down in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import garevla
from garevla.discovla.losses import GareDiscoVLALoss
from garevla.head.regularizers import draw_samples
from garevla.increments.base import IncrementNetwork
from garevla.ops.eager.hidden import EagerFunctions
from garevla.ops.native_hidden import NativeFunctions
from garevla.reference import gare as reference
from tests.helpers import (
    check_padding,
    check_small_gaps,
    random_batch,
    random_gap_mlp,
    random_psi,
    relative_error,
)

SEED = 2**40 + 7
HIDDEN = 24
ACTIVATIONS = ("gelu", "gelu_tanh", "silu", "relu", "quick_gelu")
WEIGHTS = {"beta": 0.01, "lambda_direction": 0.3, "lambda_trust": 0.2, "trust_floor": 1e3}


def gap_mlp(activation: str, dropout: float = 0.0) -> Callable[[int], IncrementNetwork]:
    return lambda dim: random_gap_mlp(dim, HIDDEN, activation, dropout)


def pair_dropout(heads: int) -> Callable[[int], IncrementNetwork]:
    return lambda dim: random_psi(dim, heads, dropout=0.3, dropout_mode="pair")


NETWORKS = {
    **{activation: gap_mlp(activation) for activation in ACTIVATIONS},
    "gelu, dropout": gap_mlp("gelu", 0.3),
    "relu, dropout": gap_mlp("relu", 0.6),
    "pair dropout": pair_dropout(1),
    "pair dropout, 4 heads": pair_dropout(4),
}
# One of each kind of layer, with masks.
KINDS = {name: NETWORKS[name] for name in ("gelu, dropout", "pair dropout")}
networks = pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
kinds = pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)

SIZES = [  # texts, videos, frames, dim
    (6, 6, 4, 16),
    (7, 5, 3, 12),
    (4, 9, 1, 20),
]


@pytest.fixture(autouse=True, params=["eager", "auto"])
def _backend(request: pytest.FixtureRequest) -> Iterator[None]:
    with garevla.use_backend(request.param):
        yield


@pytest.fixture(params=[4096, 10], ids=["one tile", "several tiles"])
def _tiles(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    for functions in (EagerFunctions, NativeFunctions):
        monkeypatch.setattr(functions, "rows", request.param)


def mask_of(psi: Any, texts: int, videos: int) -> Tensor | float:
    """What SEED drops of each pair."""
    return reference.pair_dropout_mask(psi, SEED, texts, videos) if psi.dropout else 1.0


def targets_of(texts: int, videos: int) -> Tensor:
    return torch.arange(texts) % videos


def direct_terms(psi, text, frames, mask, weights=WEIGHTS) -> tuple[reference.Pairs, Tensor]:
    """All pairs, and the loss with the targets of :func:`targets_of`."""
    texts, videos = len(text), len(frames)
    masks = mask_of(psi, texts, videos)
    similarity, delta = found = reference.pairs(text, frames, psi, mask, dropout_mask=masks)
    loss = garevla.info_nce(similarity, 20.0, targets_of(texts, videos))
    loss = loss + weights["beta"] * reference.information_bottleneck(delta)
    loss = loss + weights["lambda_trust"] * reference.trust_region(delta, weights["trust_floor"])
    if weights["lambda_direction"]:
        loss = loss + weights["lambda_direction"] * reference.direction_diversity(delta)
    return found, loss


def parameters_of(psi: IncrementNetwork) -> list[Tensor]:
    # The key bias has a true gradient of 0.
    return [p for name, p in psi.named_parameters() if "k_proj.bias" not in name]


def assert_gradients(
    got: Tensor, want: Tensor, inputs: list[Tensor], tolerance: float = 1e-9
) -> None:
    expected = torch.autograd.grad(want, inputs, allow_unused=True)
    found = torch.autograd.grad(got, inputs, allow_unused=True)
    largest = max(float(gradient.norm()) for gradient in expected if gradient is not None)
    for a, b in zip(found, expected, strict=True):
        b = torch.zeros_like(a) if b is None else b
        # Attention over one frame teaches its weights nothing.
        assert relative_error(a, b) < tolerance or (a - b).norm() < 1e-13 * largest


@networks
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("masked", [False, True], ids=["all frames", "masked"])
def test_pairs_are_those_of_the_formulas(make, size, masked):
    psi = make(size[-1]).double()
    text, frames, mask = random_batch(*size, least_frames=min(2, size[2]))
    mask = mask if masked else None
    with garevla.dropout_seed(SEED):
        similarity = garevla.gare_similarity(text, frames, psi, mask)
        found = garevla.gare_pairs(text, frames, psi, mask)
        dense = garevla.gare_increments(text, frames, psi, mask)
    want, _ = direct_terms(psi, text, frames, mask)
    moments = found.increments.moments()
    for value, expected in (
        (similarity, want.similarity),
        (found.similarity, want.similarity),
        (dense, want.increments),
        (found.increments.norm, want.increments.norm(dim=2)),
        (moments.mean, want.increments.mean(dim=0)),
    ):
        assert relative_error(value, expected) < 1e-11
    # Where frames are few, a cross-attention's increments hardly differ from text to text.
    spread = want.increments.var(dim=0)
    scale = want.increments.square().mean(dim=0)
    assert ((moments.variance - spread).abs() < 1e-11 * (spread + scale)).all()


@networks
@pytest.mark.parametrize("size", SIZES[:2], ids=str)
@pytest.mark.parametrize("lambda_direction", [0.0, 0.3])
@pytest.mark.usefixtures("_tiles")
def test_loss_and_gradients_are_those_of_the_formulas(make, size, lambda_direction):
    weights = {**WEIGHTS, "lambda_direction": lambda_direction}
    psi = make(size[-1]).double()
    text, frames, mask = random_batch(*size, least_frames=2)
    with garevla.dropout_seed(SEED):
        loss = garevla.GareLoss(psi, **weights)
        got = loss(text, frames, 20.0, mask, targets=targets_of(*size[:2])).loss
    _, want = direct_terms(psi, text, frames, mask, weights)
    assert relative_error(got, want) < 1e-11
    assert_gradients(got, want, [text, frames, *parameters_of(psi)])


@networks
def test_square_loss_is_the_reference_loss(make):
    psi = make(16).double()
    text, frames, mask = random_batch(6, 6, 4, 16, least_frames=2)
    with garevla.dropout_seed(SEED):
        got = garevla.GareLoss(psi, **WEIGHTS)(text, frames, 20.0, mask).loss
    masks = mask_of(psi, 6, 6)
    want = reference.loss(text, frames, psi, 20.0, mask, **WEIGHTS, dropout_mask=masks)
    assert relative_error(got, want) < 1e-11


@networks
@pytest.mark.usefixtures("_tiles")
def test_pairs_have_gradients_too(make):
    psi = make(12).double()
    text, frames, mask = random_batch(7, 5, 3, 12, least_frames=2)
    weight = torch.randn(7, 5, dtype=torch.float64)

    def weighted(similarity, norm, bottleneck, direction) -> Tensor:
        return (weight * (similarity + 0.1 * norm)).sum() + 0.01 * bottleneck + direction

    with garevla.dropout_seed(SEED):
        similarity, found = garevla.gare_pairs(text, frames, psi, mask)
        bottleneck = garevla.information_bottleneck(found)
        got = weighted(similarity, found.norm, bottleneck, garevla.direction_diversity(found))
    (similarity, delta), _ = direct_terms(psi, text, frames, mask)
    bottleneck = reference.information_bottleneck(delta)
    direction = reference.direction_diversity(delta)
    want = weighted(similarity, delta.norm(dim=2), bottleneck, direction)
    assert relative_error(got, want) < 1e-11
    assert_gradients(got, want, [text, frames, *parameters_of(psi)])


@kinds
@pytest.mark.parametrize("chunk", [2**22, 1])
def test_sampled_direction(make, chunk: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("garevla.ops.hidden.single.CHUNK_ELEMENTS", chunk)
    texts, videos, per_text = 7, 6, 3
    psi = make(12).double()
    text, frames, mask = random_batch(texts, videos, 3, 12, least_frames=2)
    loss = garevla.GareLoss(psi, **WEIGHTS, direction_samples=per_text)
    torch.manual_seed(3)
    with garevla.dropout_seed(SEED):
        out = loss(text, frames, 20.0, mask, targets=targets_of(texts, videos))
    torch.manual_seed(3)
    samples = draw_samples(texts, videos, per_text, text.device)
    (_, delta), without = direct_terms(
        psi, text, frames, mask, {**WEIGHTS, "lambda_direction": 0.0}
    )
    unit = torch.nn.functional.normalize(delta, dim=2)
    total = torch.zeros((), dtype=torch.float64)
    for i in range(texts):
        chosen = unit[i, samples[i]]
        kernel = torch.exp(-2.0 * (1 - chosen @ chosen.T))
        # j = k happens for one pair of videos in B, and is known without sampling.
        apart = kernel[~torch.eye(per_text, dtype=torch.bool)].mean()
        mean = (1 + (videos - 1) * apart) / videos
        total = total + torch.log(mean + 1e-8) / texts
    want = without + WEIGHTS["lambda_direction"] * total
    assert relative_error(out.direction, total) < 1e-11
    assert relative_error(out.loss, want) < 1e-11
    assert_gradients(out.loss, want, [text, frames, *parameters_of(psi)])


@kinds
@pytest.mark.usefixtures("_tiles")
def test_streaming_is_the_loss_of_the_pairs(make):
    psi = make(12).double()
    text, frames, mask = random_batch(7, 5, 3, 12, least_frames=2)
    scale = torch.tensor(7.0, dtype=torch.float64, requires_grad=True)
    loss = garevla.GareLoss(psi, **{**WEIGHTS, "lambda_direction": 0.0})
    targets = torch.tensor([4, 0, 2, 2, 0, 0, 4])
    with garevla.dropout_seed(SEED):
        stream, pairs = (
            loss(text, frames, scale, mask, targets=targets, return_similarity=keep)
            for keep in (False, True)
        )
        similarity = garevla.gare_similarity(text, frames, psi, mask)
    assert stream.similarity is None
    assert torch.equal(pairs.similarity, similarity)
    assert relative_error(stream.loss, pairs.loss) < 1e-13
    assert_gradients(stream.loss, pairs.loss, [text, frames, scale, *parameters_of(psi)], 1e-11)


@kinds
def test_joint_loss(make):
    psi = make(16).double()
    text, frames, mask = random_batch(6, 6, 4, 16, least_frames=2)
    captions = torch.randn(6, 4, 16, dtype=torch.float64, requires_grad=True)
    with garevla.dropout_seed(SEED):
        out = GareDiscoVLALoss(psi, **WEIGHTS)(text, frames, 20.0, mask, captions)
    (similarity, _), want = direct_terms(psi, text, frames, mask)
    frame = garevla.frame_level_similarity(captions, frames, 20.0, mask, mask)
    want = want + 0.3 * garevla.info_nce(frame, 20.0)
    want = want + garevla.alignment_distillation(frame, similarity, 20.0)
    assert relative_error(out.loss, want) < 1e-11
    assert out.dropout_seed == SEED
    assert_gradients(out.loss, want, [text, frames, captions, *parameters_of(psi)])


def share_mask(keep: Tensor) -> Callable[..., Tensor]:
    """In place of ``keep_mask``: a video's mask (H,) for all of its texts."""

    def keep_mask(seed, probability, text_index, video_index, size) -> Tensor:
        shape = torch.broadcast_shapes(text_index.shape, video_index.shape)
        return keep[video_index.expand(shape)]

    return keep_mask


@pytest.mark.parametrize("_backend", ["eager"], indirect=True)
@pytest.mark.parametrize("direction_samples", [None, 3])
@pytest.mark.usefixtures("_tiles")
def test_a_mask_that_texts_share_is_video_mode(
    direction_samples: int | None, monkeypatch: pytest.MonkeyPatch
):
    pair = random_psi(16, 2, dropout=0.4, dropout_mode="pair").double()
    video = garevla.CrossAttentionPsi(16, 2, dropout=0.4, dropout_mode="video").double()
    video.load_state_dict(pair.state_dict())
    keep = torch.rand(5, 16) < 0.6
    monkeypatch.setattr("garevla.ops.eager.hidden.keep_mask", share_mask(keep))
    monkeypatch.setattr("garevla.ops.hidden.single.keep_mask", share_mask(keep))
    monkeypatch.setattr(
        "garevla.increments.low_rank.cross_attention.F.dropout",
        lambda ones, probability: ones * keep.unsqueeze(1) / (1 - probability),
    )
    text, frames, mask = random_batch(7, 5, 4, 16, least_frames=2)
    inputs = [text, frames]

    def outcome(psi) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        loss = garevla.GareLoss(psi, **WEIGHTS, direction_samples=direction_samples)
        with garevla.dropout_seed(SEED):
            torch.manual_seed(1)
            out = loss(text, frames, 20.0, mask, targets=targets_of(7, 5), return_similarity=True)
        wanted = [*inputs, *parameters_of(psi)]
        return out.similarity, out.loss, torch.autograd.grad(out.loss, wanted)

    (similarity, loss, found), (want_similarity, want, expected) = outcome(pair), outcome(video)
    assert relative_error(similarity, want_similarity) < 1e-11
    assert relative_error(loss, want) < 1e-11
    for a, b in zip(found, expected, strict=True):
        assert relative_error(a, b) < 1e-9


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_without_dropout_it_is_the_low_rank_path(dropout: float):
    """No dropout, or evaluation: the same bits as of the network that has none."""
    psi = random_psi(16, 2, dropout=dropout, dropout_mode="pair")
    plain = garevla.CrossAttentionPsi(16, 2)
    plain.load_state_dict(psi.state_dict())
    if dropout:
        psi.eval()
    text, frames, mask = random_batch(6, 6, 4, 16, torch.float32, least_frames=2)

    def outcome(network) -> list[Tensor]:
        out = garevla.GareLoss(network)(text, frames, 20.0, mask, return_similarity=True)
        assert out.dropout_seed is None
        return [out.similarity, out.loss, *torch.autograd.grad(out.loss, [text, frames])]

    for a, b in zip(outcome(psi), outcome(plain), strict=True):
        assert torch.equal(a, b)


def test_a_gap_mlp_drops_nothing_in_evaluation():
    psi = random_gap_mlp(16, HIDDEN, dropout=0.5)
    plain = garevla.GapMLPPsi(16, HIDDEN)
    plain.load_state_dict(psi.state_dict())
    text, frames, mask = random_batch(6, 6, 4, 16, torch.float32)
    trained = garevla.gare_similarity(text, frames, psi, mask)
    evaluated = garevla.gare_similarity(text, frames, psi.eval(), mask)
    assert torch.equal(evaluated, garevla.gare_similarity(text, frames, plain, mask))
    assert relative_error(trained, evaluated) > 1e-3


@kinds
@pytest.mark.parametrize("lambda_direction", [0.0, 0.3])
def test_seeds(make, lambda_direction: float):
    psi = make(16)
    text, frames, mask = random_batch(6, 6, 4, 16, torch.float32, least_frames=2)
    loss = garevla.GareLoss(psi, lambda_direction=lambda_direction)

    def outcome(seed: int | None = None) -> garevla.GareLossOutput:
        if seed is not None:
            torch.manual_seed(seed)
        return loss(text, frames, 20.0, mask)

    first, again, other = outcome(5), outcome(5), outcome(6)
    assert torch.equal(first.loss, again.loss)
    assert torch.equal(first.dropout_seed, again.dropout_seed)
    assert first.loss != other.loss
    assert first.dropout_seed != other.dropout_seed
    # A step further, the generator has moved on.
    assert outcome().dropout_seed != other.dropout_seed
    with garevla.dropout_seed(int(other.dropout_seed)):
        repeated = outcome()
    assert torch.equal(repeated.loss, other.loss)
    assert torch.equal(repeated.dropout_seed, other.dropout_seed)
    assert other.dropout_seed.dtype == torch.int64
    assert other.dropout_seed.device.type == "cpu"


@kinds
@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
def test_padding_has_no_effect(make, poison: float):
    loss = garevla.GareLoss(make(16).double(), **WEIGHTS)
    with garevla.dropout_seed(SEED):
        check_padding(loss, poison)


@kinds
@pytest.mark.parametrize("alike", ["every pair", "the matching pair"])
@pytest.mark.parametrize("gap", [1e-1, 1e-2])
def test_small_gaps_do_not_cancel(make, gap: float, alike: str):
    psi = make(256)
    with garevla.dropout_seed(SEED):
        check_small_gaps(gap, alike, psi, mask_of(psi, 16, 16))


TINY = {
    "gap": lambda: random_gap_mlp(4, 3, dropout=0.3),
    "attention": lambda: random_psi(4, dropout=0.3, dropout_mode="pair"),
}


@pytest.mark.parametrize("make", TINY.values(), ids=TINY)
@pytest.mark.parametrize("lambda_direction", [0.0, 0.3])
def test_gradcheck(make, lambda_direction: float):
    psi = make().double()
    text, frames, _ = random_batch(3, 2, 2, 4)
    loss = garevla.GareLoss(psi, **{**WEIGHTS, "lambda_direction": lambda_direction})
    scale = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    names = [name for name, _ in psi.named_parameters()]

    def of(text, frames, scale, *parameters) -> Tensor:
        given = {f"psi.{name}": p for name, p in zip(names, parameters, strict=True)}
        arguments = {"targets": torch.tensor([1, 0, 1])}
        return torch.func.functional_call(loss, given, (text, frames, scale), arguments).loss

    with garevla.dropout_seed(SEED):
        assert torch.autograd.gradcheck(of, (text, frames, scale, *psi.parameters()))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: garevla.GapMLPPsi(0), "sizes must be at least 1, got dim=0"),
        (lambda: garevla.GapMLPPsi(8, 0), "hidden_dim=0"),
        (lambda: garevla.GapMLPPsi(8, 8, "tanh"), "activation must be one of .*'tanh'"),
        (lambda: garevla.GapMLPPsi(8, 8, dropout=1.0), r"dropout must be in \[0, 1\), got 1.0"),
        (lambda: garevla.GapMLPPsi(8, 8, dropout=-0.1), r"dropout must be in \[0, 1\), got -0.1"),
        (
            lambda: garevla.CrossAttentionPsi(8, dropout=0.3, dropout_mode="text"),
            r"dropout_mode must be one of \('video', 'pair'\), got 'text'",
        ),
    ],
)
def test_bad_networks_are_refused(make: Callable[[], IncrementNetwork], message: str):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_bad_seeds_are_refused(seed: int):
    with pytest.raises(ValueError, match="seed must be in"), garevla.dropout_seed(seed):
        pass


def test_features_of_another_size_are_refused():
    text, frames, _ = random_batch(3, 3, 2, 8)
    with pytest.raises(ValueError, match="16"):
        garevla.gare_similarity(text, frames, garevla.GapMLPPsi(16).double())
