"""Increments of the videos, from the words of the texts: as the formulas written down directly."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import garevla
from garevla.increments.base import IncrementNetwork
from garevla.reference import gare as reference
from tests.conformance.targets import Target, on_targets
from tests.helpers import random_batch, random_gap_mlp, random_psi, relative_error

pytestmark = pytest.mark.usefixtures("native")

DIM = 8
NETWORKS = {
    "one head": lambda: random_psi(DIM),
    "two heads": lambda: random_psi(DIM, 2),
    "gap mlp": lambda: random_gap_mlp(DIM, 6),
    "pair dropout": lambda: random_psi(DIM, dropout=0.4, dropout_mode="pair"),
    "gap mlp with dropout": lambda: random_gap_mlp(DIM, 6, dropout=0.4),
}
DROPPING = ("pair dropout", "gap mlp with dropout")
SIZES = [(1, 1), (4, 4), (5, 3), (2, 7)]
WEIGHTS = {"beta": 0.1, "lambda_direction": 0.2, "lambda_trust": 0.3, "trust_floor": 1e9}


class Case:
    """Texts, their words, videos, ψ and the plain formulas' pairs; words' padding holds NaN."""

    def __init__(self, network: str, texts: int, videos: int, words: int = 5) -> None:
        self.psi: IncrementNetwork = NETWORKS[network]().double()
        self.text, self.frames, self.mask = random_batch(texts, videos, 3, DIM)
        # At least two words: increments of one alone are the same for all videos.
        _, word, self.word_mask = random_batch(1, texts, words, DIM, least_frames=2)
        self.words = word
        self.dropout_mask: Tensor | float = 1.0
        if network in DROPPING:
            self.dropout_mask = reference.pair_dropout_mask(self.psi, 7, videos, texts)

    @property
    def texts(self) -> garevla.Texts:
        poisoned = self.words.masked_fill(~self.word_mask.unsqueeze(2), torch.nan)
        return garevla.Texts(self.text, poisoned, self.word_mask)

    @property
    def inputs(self) -> list[Tensor]:
        return [self.text, self.words, self.frames, *self.psi.parameters()]

    def pairs(self) -> reference.Pairs:
        return reference.video_corrected_pairs(
            self.text,
            self.words,
            self.word_mask,
            self.frames,
            self.mask,
            self.psi,
            dropout_mask=self.dropout_mask,
        )

    def check_gradients(self, got: Tensor, want: Tensor, bound: float = 1e-9) -> None:
        options: dict[str, Any] = {"allow_unused": True, "materialize_grads": True}
        assert relative_error(got, want) < bound
        for a, b in zip(
            torch.autograd.grad(got, self.inputs, **options),
            torch.autograd.grad(want, self.inputs, **options),
            strict=True,
        ):
            # A bias that no gradient reaches has rounding noise alone.
            assert a.norm() < 1e-12 if b.norm() < 1e-12 else relative_error(a, b) < bound


def plain_loss(pairs: reference.Pairs, scale: float, contrastive: Tensor | None = None) -> Tensor:
    """The whole loss with texts and videos exchanged in the regularizers."""
    exchanged = pairs.increments.transpose(0, 1)
    total = reference.info_nce(pairs.similarity, scale) if contrastive is None else contrastive
    total = total + WEIGHTS["beta"] * reference.information_bottleneck(exchanged)
    total = total + WEIGHTS["lambda_trust"] * reference.trust_region(exchanged, 1e9)
    return total + WEIGHTS["lambda_direction"] * reference.direction_diversity(exchanged)


@pytest.mark.parametrize("backend", ["eager", "native"])
@pytest.mark.parametrize(("texts", "videos"), SIZES)
@pytest.mark.parametrize("network", NETWORKS)
def test_similarity(network: str, texts: int, videos: int, backend: str):
    case = Case(network, texts, videos)
    want = case.pairs()
    weights = torch.randn(texts, videos, dtype=torch.float64)
    with garevla.dropout_seed(7):
        got = garevla.gare_similarity(
            case.texts, case.frames, case.psi, case.mask, corrects="video", backend=backend
        )
    assert relative_error(got, want.similarity) < 1e-12
    case.check_gradients((got * weights).sum(), (want.similarity * weights).sum())


@on_targets()
@pytest.mark.parametrize("network", ["two heads", "gap mlp"])
def test_every_backend(network: str, target: Target):
    target.require()
    torch.manual_seed(0)
    case = Case(network, 3, 3, words=4)
    inputs = [x.detach().to(target.device, torch.float32) for x in (case.text, case.words)]
    texts = garevla.Texts(*inputs, case.word_mask.to(target.device))
    frames = case.frames.detach().to(target.device, torch.float32).requires_grad_()
    mask, psi = case.mask.to(target.device), case.psi.to(target.device).float()
    found = {}
    for backend in (target.backend, "eager"):
        loss = garevla.GareLoss(
            psi, corrects="video", backend=backend, **(WEIGHTS | {"lambda_direction": 0.0})
        )
        (gradient,) = torch.autograd.grad(loss(texts, frames, 5.0, mask).loss, frames)
        found[backend] = loss.similarity(texts, frames, mask).detach(), gradient
    for got, want in zip(found[target.backend], found["eager"], strict=True):
        assert relative_error(got, want) < 1e-4


@pytest.mark.parametrize("network", NETWORKS)
def test_increments(network: str):
    case = Case(network, 4, 3)
    with garevla.dropout_seed(7):
        got = garevla.gare_increments(
            case.texts, case.frames, case.psi, case.mask, corrects="video"
        )
    assert relative_error(got, case.pairs().increments) < 1e-12


@pytest.mark.parametrize("backend", ["eager", "native"])
@pytest.mark.parametrize("network", NETWORKS)
def test_loss(network: str, backend: str):
    case = Case(network, 5, 5)
    loss = garevla.GareLoss(case.psi, corrects="video", backend=backend, **WEIGHTS)
    with garevla.dropout_seed(7):
        got = loss(case.texts, case.frames, 5.0, case.mask, return_similarity=True)
    want = case.pairs()
    assert relative_error(got.similarity, want.similarity) < 1e-12
    case.check_gradients(got.loss, plain_loss(want, 5.0))


@pytest.mark.parametrize("network", ["one head", "pair dropout"])
def test_streaming_loss_is_the_whole_one_without_a_term(network: str):
    case = Case(network, 6, 6)
    streaming = garevla.GareLoss(
        case.psi, corrects="video", **(WEIGHTS | {"lambda_direction": 0.0})
    )
    with garevla.dropout_seed(7):
        got = streaming(case.texts, case.frames, 5.0, case.mask).loss
    pairs = case.pairs()
    diversity = reference.direction_diversity(pairs.increments.transpose(0, 1))
    case.check_gradients(got, plain_loss(pairs, 5.0) - WEIGHTS["lambda_direction"] * diversity)


@pytest.mark.parametrize("backend", ["eager", "native"])
@pytest.mark.parametrize("direction", [0.0, WEIGHTS["lambda_direction"]], ids=["stream", "exact"])
@pytest.mark.parametrize("network", ["two heads", "gap mlp with dropout"])
def test_loss_of_several_texts_a_video(
    network: str, direction: float, backend: str, monkeypatch: pytest.MonkeyPatch
):
    # Two texts at once.
    monkeypatch.setattr("garevla.head.pair_weights._AT_ONCE", 14)
    case, targets = Case(network, 7, 4), torch.tensor([2, 0, 2, 3, 2, 0, 3])
    loss = garevla.GareLoss(
        case.psi, corrects="video", backend=backend, **(WEIGHTS | {"lambda_direction": direction})
    )
    with garevla.dropout_seed(7):
        got = loss(case.texts, case.frames, 5.0, case.mask, targets=targets).loss
    pairs = case.pairs()
    want = plain_loss(pairs, 5.0, garevla.info_nce(pairs.similarity, 5.0, targets))
    if not direction:
        diversity = reference.direction_diversity(pairs.increments.transpose(0, 1))
        want = want - WEIGHTS["lambda_direction"] * diversity
    case.check_gradients(got, want)


@pytest.mark.parametrize(
    ("texts", "videos", "zeros"),
    [(1, 1, ("bottleneck", "trust_region", "direction")), (3, 1, ("bottleneck",))],
)
def test_batches_of_one(texts: int, videos: int, zeros: tuple[str, ...]):
    case = Case("one head", texts, videos)
    loss = garevla.GareLoss(case.psi, corrects="video", **WEIGHTS)
    out = loss(case.texts, case.frames, 5.0, case.mask, targets=[0] * texts)
    for name in ("bottleneck", "trust_region", "direction"):
        assert (out[name] == 0) == (name in zeros), name
    out.loss.backward()
    assert case.text.grad.isfinite().all()


def test_pairs_of_exchanged_increments():
    case = Case("one head", 4, 3)
    pairs = garevla.gare_pairs(case.texts, case.frames, case.psi, case.mask, corrects="video")
    want = case.pairs()
    assert relative_error(pairs.similarity, want.similarity) < 1e-12
    exchanged = want.increments.transpose(0, 1)
    bottleneck = reference.information_bottleneck(exchanged)
    assert relative_error(garevla.information_bottleneck(pairs.increments), bottleneck) < 1e-12


def test_padding_words_change_nothing():
    case = Case("two heads", 3, 3, words=4)
    options: dict[str, Any] = {"corrects": "video"}
    got = garevla.gare_similarity(case.texts, case.frames, case.psi, case.mask, **options)
    wider = case.texts.padded(9)
    assert wider.word_features.shape == (3, 9, DIM)
    padded = garevla.gare_similarity(wider, case.frames, case.psi, case.mask, **options)
    assert relative_error(padded, got) < 1e-14


def test_texts_are_cut_and_joined():
    texts = Case("one head", 4, 2).texts
    joined = garevla.Texts.cat([texts[:1].padded(8), texts[torch.tensor([1, 3])]])
    assert len(joined) == 3
    assert torch.equal(joined.text_features, texts.text_features[[0, 1, 3]])
    assert not joined.word_mask[:, 5:].any()
    whole = garevla.Texts(texts.text_features, texts.word_features)
    assert garevla.Texts.cat([whole, texts]).word_mask[:4].all()
    assert whole.to(torch.float32).word_features.dtype == torch.float32


def test_errors_name_the_argument():
    case = Case("one head", 3, 3)
    texts, frames, psi = case.texts, case.frames, case.psi
    with pytest.raises(TypeError, match=r"takes garevla\.Texts"):
        garevla.gare_similarity(case.text, frames, psi, corrects="video")
    with pytest.raises(TypeError, match='for corrects="video"'):
        garevla.gare_similarity(texts, frames, psi)
    with pytest.raises(TypeError, match="kept videos"):
        garevla.gare_similarity(
            texts, garevla.encode_videos(frames.detach(), psi), corrects="video"
        )
    with pytest.raises(ValueError, match="corrects must be one of"):
        garevla.GareLoss(psi, corrects="both")
    with pytest.raises(ValueError, match="word_features must have shape"):
        garevla.Texts(case.text, case.words[:2])
    with pytest.raises(ValueError, match="word_mask must have shape"):
        garevla.Texts(case.text, case.words, case.word_mask[:, :2])
    nothing = garevla.Texts(case.text, case.words, torch.zeros(3, 5))
    with pytest.raises(ValueError, match="word_mask has 3 text"):
        garevla.gare_similarity(nothing, frames, psi, corrects="video")
    published = random_psi(DIM, padding="published").double()
    with pytest.raises(ValueError, match="no published code corrects videos"):
        garevla.gare_similarity(texts, frames, published, corrects="video")
