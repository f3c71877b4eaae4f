"""Increments beside the features: how ψ starts, and what is said of features of norm 1."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import garevla
from garevla.increments.base import IncrementNetwork
from garevla.utils import once
from tests.helpers import relative_error

DIM = 256
KINDS = [garevla.CrossAttentionPsi, garevla.GapMLPPsi]

kinds = pytest.mark.parametrize("kind", KINDS)


def features(norm: float | None) -> tuple[Tensor, Tensor]:
    """Texts and frames of a norm; None: some 16."""
    found = torch.randn(6, DIM), torch.randn(6, 5, DIM)
    return found if norm is None else tuple(norm * F.normalize(each, dim=-1) for each in found)


@pytest.fixture(autouse=True)
def _nothing_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(once, "_GIVEN", set())


@pytest.mark.parametrize("norm", [1.0, None])
def test_length_of_fresh_increments(norm: float | None):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        psi = garevla.CrossAttentionPsi(DIM)
        lengths = garevla.gare_increments(*features(norm), psi).norm(dim=-1)
    assert abs(lengths.mean() / (0.02 * DIM) - 1) < 0.1


@kinds
def test_small_is_a_hundredth(kind: type[IncrementNetwork]):
    text, frames = features(None)
    found = {}
    for init in ("published", "small"):
        torch.manual_seed(3)
        found[init] = garevla.gare_increments(text, frames, kind(DIM, init=init))
    assert relative_error(100 * found["small"], found["published"]) < 1e-5


@kinds
def test_small_starts_from_the_similarity_without_increments(kind: type[IncrementNetwork]):
    text, frames = features(1.0)
    psi = kind(DIM, init="small")
    without = copy.deepcopy(psi)
    last = [layer for layer in without.modules() if isinstance(layer, nn.Linear)][-1]
    nn.init.zeros_(last.weight)
    plain = garevla.gare_similarity(text, frames, without)
    assert (garevla.gare_similarity(text, frames, psi) - plain).abs().max() < 0.02
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        published = garevla.gare_similarity(text, frames, kind(DIM))
    assert (published - plain).abs().max() > 0.1
    # And moves on from there: every parameter has a gradient, none is out of proportion.
    garevla.GareLoss(psi)(text, frames, 20.0).loss.backward()
    for name, parameter in psi.named_parameters():
        assert parameter.grad is not None
        if not name.endswith(("k_proj.bias", "norm1.bias")):
            assert 0 < parameter.grad.norm() < 100


@kinds
def test_unknown_start(kind: type[IncrementNetwork]):
    with pytest.raises(ValueError, match=r"init must be one of \('published', 'small'\), got 'no'"):
        kind(DIM, init="no")


CALLS: dict[str, Callable[..., Any]] = {
    "similarity": lambda text, frames, psi: garevla.gare_similarity(text, frames, psi),
    "increments": lambda text, frames, psi: garevla.gare_increments(text, frames, psi),
    "loss": lambda text, frames, psi: garevla.GareLoss(psi)(text, frames, 20.0),
    "evaluation": lambda text, frames, psi: garevla.GareLoss(psi).eval().similarity(text, frames),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_features_of_norm_1_are_warned_of_once(call: Callable[..., Any], backend: str):
    psi, batch = garevla.CrossAttentionPsi(DIM), features(1.0)
    message = r"increments of psi are 5\.\d times as long as the text features \(norm 1\)"
    with pytest.warns(UserWarning, match=message) as caught:
        call(*batch, psi)
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        call(*batch, psi)
        call(*batch, garevla.CrossAttentionPsi(DIM))


@pytest.mark.parametrize(
    ("norm", "init"), [(None, "published"), (10.0, "published"), (1.0, "small"), (0.0, "published")]
)
@kinds
def test_other_features_are_not(kind: type[IncrementNetwork], norm: float | None, init: str):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        garevla.GareLoss(kind(DIM, init=init))(*features(norm), 20.0)


def test_lengths_are_compared_once_for_each_network(monkeypatch: pytest.MonkeyPatch):
    batch, asked = features(None), []
    psi = garevla.CrossAttentionPsi(DIM)
    videos = psi.encode_videos(batch[1], torch.ones(6, 5, dtype=torch.bool))
    pairs = type(videos).pairs
    monkeypatch.setattr(
        type(videos), "pairs", lambda *arguments: asked.append(1) or pairs(*arguments)
    )
    garevla.gare_similarity(*batch, psi)
    for network in (psi, copy.deepcopy(psi), garevla.CrossAttentionPsi(DIM)):
        garevla.gare_similarity(*batch, network)
    assert len(asked) == 2
    # Replicas of DataParallel are made in each step.
    for _ in range(2):
        replica = garevla.CrossAttentionPsi(DIM)._replicate_for_data_parallel()
        garevla.gare_similarity(*batch, replica)
    assert len(asked) == 2


def test_the_comparison_changes_no_number():
    text, frames = features(None)
    psi = garevla.CrossAttentionPsi(DIM, dropout=0.2, dropout_mode="pair")
    loss = garevla.GareLoss(psi, direction_samples=3)
    found = []
    for _ in range(2):
        torch.manual_seed(5)
        found.append(loss(text, frames, 20.0).loss)
    assert psi.lengths_compared
    assert torch.equal(*found)


def test_nothing_is_compared_while_compiling_or_without_numbers():
    batch = features(1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        psi = garevla.CrossAttentionPsi(DIM)
        torch.compile(garevla.GareLoss(psi), fullgraph=True, backend="eager")(*batch, 20.0)
        assert not psi.lengths_compared

        class Watch(TorchDispatchMode):
            def __torch_dispatch__(
                self, function: Any, types: Any, arguments: Any = (), keywords: Any = None
            ) -> Any:
                assert function is not torch.ops.aten._local_scalar_dense.default
                return function(*arguments, **(keywords or {}))

        with Watch():
            garevla.gare_similarity(*batch, psi)
        assert not psi.lengths_compared
