"""Several right videos for a text, soft targets and label smoothing: as torch's cross-entropy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import garevla
from garevla.increments.base import IncrementNetwork
from tests.head.test_streaming import CHUNK, allocations
from tests.helpers import random_batch, random_gap_mlp, random_psi, relative_error

pytestmark = pytest.mark.usefixtures("native")

TEXTS, VIDEOS, DIM = 6, 5, 8
SEVERAL = [[0], [1, 4], [1], [4, 0, 1], [0], [3]]


def listed() -> Tensor:
    right = torch.zeros(TEXTS, VIDEOS, dtype=torch.float64)
    for text, videos in enumerate(SEVERAL):
        right[text, videos] = 1.0
    return right


def soft() -> Tensor:
    right = torch.rand(TEXTS, VIDEOS, dtype=torch.float64) * (torch.rand(TEXTS, VIDEOS) < 0.7)
    right[:, 0] += 0.1
    right[:, 2] = 0.0  # a video without texts
    return right


ONE_EACH = [0, 3, 1, 0, 4, 1]
# How targets are given, and as a matrix.
TARGETS: dict[str, Callable[[], tuple[Any, Tensor]]] = {
    "one each": lambda: (ONE_EACH, F.one_hot(torch.tensor(ONE_EACH), VIDEOS).double()),
    "several": lambda: (SEVERAL, listed()),
    "matrix": lambda: (matrix := soft(), matrix),
    "sparse": lambda: ((matrix := soft()).to_sparse(), matrix),
    "yes or no": lambda: (listed().bool(), listed()),
}


def cross_entropy(logits: Tensor, right: Tensor, label_smoothing: float) -> Tensor:
    """Both directions, by torch."""
    known = right.sum(0) > 0
    columns, of_video = logits.T[known], right.T[known]
    by_text = F.cross_entropy(
        logits, right / right.sum(1, keepdim=True), label_smoothing=label_smoothing
    )
    return 0.5 * by_text + 0.5 * F.cross_entropy(
        columns, of_video / of_video.sum(1, keepdim=True), label_smoothing=label_smoothing
    )


def check(got: Tensor, want: Tensor, inputs: list[Tensor]) -> None:
    assert relative_error(got, want) < 1e-12
    options: dict[str, Any] = {"allow_unused": True, "materialize_grads": True}
    for a, b in zip(
        torch.autograd.grad(got, inputs, retain_graph=True, **options),
        torch.autograd.grad(want, inputs, **options),
        strict=True,
    ):
        assert a.norm() < 1e-12 if b.norm() < 1e-12 else relative_error(a, b) < 1e-9


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("given", TARGETS)
def test_info_nce(given: str, label_smoothing: float):
    targets, right = TARGETS[given]()
    similarity = torch.randn(TEXTS, VIDEOS, dtype=torch.float64, requires_grad=True)
    scale = torch.tensor(4.0, dtype=torch.float64, requires_grad=True)
    got = garevla.info_nce(similarity, scale, targets, label_smoothing=label_smoothing)
    check(got, cross_entropy(similarity * scale, right, label_smoothing), [similarity, scale])


def test_smoothing_of_the_diagonal():
    similarity = torch.randn(5, 5, dtype=torch.float64, requires_grad=True)
    got = garevla.info_nce(similarity, 4.0, label_smoothing=0.2)
    diagonal = torch.arange(5)
    want = sum(
        F.cross_entropy(4 * x, diagonal, label_smoothing=0.2) for x in (similarity, similarity.T)
    )
    check(got, want / 2, [similarity])


NETWORKS: dict[str, Callable[[], IncrementNetwork]] = {
    "cross-attention": lambda: random_psi(DIM),
    "gap mlp with dropout": lambda: random_gap_mlp(DIM, 5, dropout=0.4),
}
STREAMS = {"stream": 0.0, "exact": 0.3}


@pytest.mark.parametrize("backend", ["eager", "native"])
@pytest.mark.parametrize("corrects", ["text", "video"])
@pytest.mark.parametrize("direction", STREAMS.values(), ids=STREAMS)
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("given", TARGETS)
def test_loss(
    given: str,
    network: str,
    direction: float,
    corrects: Any,
    backend: str,
    monkeypatch: pytest.MonkeyPatch,
):
    # Two rows at once.
    monkeypatch.setattr("garevla.head.pair_weights._AT_ONCE", 12)
    psi = NETWORKS[network]().double()
    targets, right = TARGETS[given]()
    text, frames, mask = random_batch(TEXTS, VIDEOS, 3, DIM)
    scale = torch.tensor(4.0, dtype=torch.float64, requires_grad=True)
    texts: Any = text
    if corrects == "video":
        texts = garevla.Texts(text, torch.randn(TEXTS, 3, DIM, dtype=torch.float64))
    loss = garevla.GareLoss(
        psi, lambda_direction=direction, corrects=corrects, backend=backend, label_smoothing=0.1
    )
    with garevla.dropout_seed(3):
        got = loss(texts, frames, scale, mask, targets=targets).contrastive
    with garevla.dropout_seed(3):
        similarity = loss.similarity(texts, frames, mask)
    want = cross_entropy(similarity * scale, right, 0.1)
    check(got, want, [text, frames, scale, *psi.parameters()])


@pytest.mark.parametrize("corrects", ["text", "video"])
def test_smoothing_of_pairs_in_order(corrects: Any):
    psi = random_psi(DIM).double()
    text, frames, mask = random_batch(5, 5, 3, DIM)
    texts: Any = text
    if corrects == "video":
        texts = garevla.Texts(text, torch.randn(5, 3, DIM, dtype=torch.float64))
    loss = garevla.GareLoss(psi, lambda_direction=0.0, corrects=corrects, label_smoothing=0.1)
    similarity = loss.similarity(texts, frames, mask)
    want = garevla.info_nce(similarity, 4.0, label_smoothing=0.1)
    check(loss(texts, frames, 4.0, mask).contrastive, want, [text, frames, *psi.parameters()])


GIVEN: dict[str, dict[str, Any]] = {
    "smoothing": {},
    "lists": {"targets": [[i, (i + 1) % 1100] for i in range(1100)]},
}


@pytest.mark.parametrize("given", GIVEN)
def test_no_allocation_grows_with_texts_times_videos(given: str):
    batch = 1100
    assert batch**2 > CHUNK
    text, frames, _ = random_batch(batch, batch, 1, DIM, torch.float32)
    loss = garevla.GareLoss(random_psi(DIM), lambda_direction=0.0, label_smoothing=0.1)
    found = allocations(lambda: loss(text, frames, 20.0, **GIVEN[given]).loss)
    assert max(found) <= 4 * CHUNK


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ([[0], [1], []], r"targets\[2\] must be video indices"),
        ([[0], [1], [3]], r"targets\[2\] must be video indices in \[0, 3\)"),
        ([[0], [1]], "targets must be 3"),
        (torch.ones(2, 3), "targets must have shape"),
        (torch.tensor([[1.0, 0, 0], [0, 0, 0], [0, 1, 0]]), "some video right for each text"),
        (torch.eye(3) - 0.1, "at least 0"),
        (torch.eye(3).requires_grad_(), "must not require a gradient"),
    ],
)
def test_targets_that_make_no_sense(targets: Any, message: str):
    with pytest.raises(ValueError, match=message):
        garevla.info_nce(torch.randn(3, 3), 4.0, targets)


@pytest.mark.parametrize("label_smoothing", [-0.1, 1.0])
def test_smoothing_out_of_range(label_smoothing: float):
    with pytest.raises(ValueError, match="label_smoothing must be in"):
        garevla.GareLoss(random_psi(DIM), label_smoothing=label_smoothing)
