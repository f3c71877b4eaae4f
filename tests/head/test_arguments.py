"""What is taken as an argument in more than one form, and what is said of what is mistaken."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import garevla
from garevla import CrossAttentionPsi, GareLoss, gare_similarity
from garevla.reference import discovla, gare
from garevla.utils import once
from tests.helpers import random_psi

TEXT, FRAMES = torch.randn(3, 8), torch.randn(3, 4, 8)
CAPTIONS = torch.randn(3, 4, 8)
MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]])


@pytest.fixture
def psi() -> CrossAttentionPsi:
    return random_psi(8)


@pytest.fixture(autouse=True)
def _nothing_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(once, "_GIVEN", set())


def losses(psi: CrossAttentionPsi) -> dict[str, Callable[..., Any]]:
    joint = garevla.GareDiscoVLALoss(psi)
    return {
        "gare": GareLoss(psi),
        "discovla": lambda *features, **more: garevla.DiscoVLALoss()(*features, CAPTIONS, **more),
        "joint": lambda *features, **more: joint(*features, CAPTIONS, **more),
    }


@pytest.mark.parametrize("kind", ["gare", "discovla", "joint"])
@pytest.mark.parametrize("form", [list, tuple, lambda numbers: torch.tensor(numbers)])
def test_targets(psi: CrossAttentionPsi, kind: str, form: Callable[[list[int]], Any]):
    loss, numbers = losses(psi)[kind], [2, 0, 1]
    expected = loss(TEXT[numbers], FRAMES, 10.0, MASK, targets=torch.tensor(numbers)).loss
    assert torch.equal(
        loss(TEXT[numbers], FRAMES, 10.0, MASK, targets=form(numbers)).loss, expected
    )
    assert loss(TEXT[numbers], FRAMES, 10.0, MASK).loss != expected


@pytest.mark.parametrize(
    ("targets", "error", "message"),
    [
        ([0, 1], ValueError, r"of shape \(A,\) = \(3,\)"),
        ([0.0, 1.0, 2.0], ValueError, "must be int64"),
        ([0, 1, 3], ValueError, "video indices"),
        (["a", "b", "c"], TypeError, "targets must be an int64 tensor .* a sequence of integers"),
        (
            [[0], [], [2]],
            ValueError,
            r"targets\[1\] must be video indices in \[0, 3\), one at least",
        ),
    ],
)
def test_bad_targets(psi: CrossAttentionPsi, targets: Any, error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        GareLoss(psi)(TEXT, FRAMES, 10.0, targets=targets)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.uint8, torch.float32])
def test_masks_of_any_dtype_are_alike(psi: CrossAttentionPsi, dtype: torch.dtype):
    calls: list[Callable[[Tensor], Tensor]] = [
        lambda mask: gare_similarity(TEXT, FRAMES, psi, mask),
        lambda mask: garevla.gare_increments(TEXT, FRAMES, psi, mask),
        lambda mask: garevla.mean_frame_similarity(TEXT, FRAMES, mask),
        lambda mask: garevla.frame_level_similarity(CAPTIONS, FRAMES, 10.0, mask, mask),
        lambda mask: discovla.frame_level_similarity(CAPTIONS, FRAMES, 10.0, mask, mask),
        lambda mask: gare.pairs(TEXT, FRAMES, psi, mask).similarity,
    ]
    for loss in losses(psi).values():
        calls.append(lambda mask, loss=loss: loss(TEXT, FRAMES, 10.0, mask).loss)
        calls.append(lambda mask, loss=loss: loss(TEXT, FRAMES, 10.0, mask, targets=[2, 0, 1]).loss)
    for call in calls:
        assert torch.equal(call(MASK.to(dtype)), call(MASK.bool()))
        assert not torch.equal(call(MASK.to(dtype)), call(torch.ones_like(MASK)))


def scaled(scale: Any) -> list[Callable[[], Any]]:
    return [
        lambda: garevla.info_nce(torch.eye(3), scale),
        lambda: GareLoss(CrossAttentionPsi(8))(TEXT, FRAMES, scale),
        lambda: garevla.DiscoVLALoss()(TEXT, FRAMES, scale),
        lambda: garevla.frame_level_similarity(CAPTIONS, FRAMES, scale),
        lambda: garevla.alignment_distillation(torch.eye(3), torch.eye(3), scale),
    ]


@pytest.mark.parametrize(
    ("scale", "error", "message"),
    [
        (torch.ones(2), ValueError, r"logit_scale must be one number, got shape \(2,\)"),
        (-3.0, ValueError, "logit_scale must be positive and finite, got -3"),
        (torch.tensor(0.0), ValueError, "logit_scale must be positive and finite, got 0"),
        (float("nan"), ValueError, "logit_scale must be positive and finite, got nan"),
        (torch.tensor(torch.inf), ValueError, "logit_scale must be positive and finite, got inf"),
        (torch.tensor(True), TypeError, "logit_scale must be a real number"),
        ("100", TypeError, "logit_scale must be a number or a 0-d tensor, got str"),
        (None, TypeError, "logit_scale must be a number or a 0-d tensor, got NoneType"),
    ],
)
def test_bad_scales(scale: Any, error: type[Exception], message: str):
    for call in scaled(scale):
        with pytest.raises(error, match=message):
            call()


def test_a_scale_of_one_element(psi: CrossAttentionPsi):
    for flat, plain in zip(scaled(torch.tensor([20.0])), scaled(20.0), strict=True):
        torch.manual_seed(0)
        got = flat()
        torch.manual_seed(0)
        want = plain()
        assert torch.equal(getattr(got, "loss", got), getattr(want, "loss", want))


@pytest.mark.parametrize("scale", [2.659, torch.tensor(4.6052), nn.Parameter(torch.tensor(3.0))])
def test_logarithms_are_warned_of_once(scale: Any):
    first, *others = scaled(scale)
    with pytest.warns(UserWarning, match=r"may be its logarithm.*logit_scale\.exp\(\)") as caught:
        first()
    # At the line that called.
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for call in others:
            call()


@pytest.mark.parametrize(
    "scale", [1.0, 14.3, torch.tensor(100.0), nn.Parameter(torch.tensor(50.0))]
)
def test_factors_are_not_warned_of(scale: Any):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for call in scaled(scale):
            call()


def test_only_parameters_are_suspected_where_the_host_would_wait():
    # Of a tensor on a GPU no more is known than of one without numbers.
    from garevla.utils.validation import as_logit_scale

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        as_logit_scale(torch.empty((), device="meta"))
    with pytest.warns(UserWarning, match="a parameter may be its logarithm"):
        as_logit_scale(nn.Parameter(torch.empty((), device="meta")))


class Psi(nn.Module):
    """Of another codebase."""

    dim = 8


class Wrapper(nn.Module):
    """Like DistributedDataParallel, which passes on no attributes."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


@pytest.mark.parametrize(
    ("psi", "message"),
    [
        (MASK, "got a tensor; the order is text_features, frame_features, psi, frame_mask"),
        (Psi(), r"got .*\.Psi\. Of the published Psi, load_official_state_dict"),
        (CrossAttentionPsi, r"got the class garevla\..*CrossAttentionPsi"),
        (Wrapper(CrossAttentionPsi(8)), r"got .*\.Wrapper.* \.module"),
        (None, "got builtins.NoneType"),
    ],
)
def test_what_is_no_network(psi: Any, message: str):
    for call in (
        lambda: gare_similarity(TEXT, FRAMES, psi, MASK),
        lambda: garevla.gare_increments(TEXT, FRAMES, psi, MASK),
        lambda: GareLoss(psi),
        lambda: garevla.GareDiscoVLALoss(psi),
    ):
        with pytest.raises(TypeError, match=f"psi must be an increment network .*{message}"):
            call()


def test_several_captions_a_video(psi: CrossAttentionPsi):
    captions = torch.randn(3, 5, 8)
    loss = GareLoss(psi)
    message = r"\(A, D\), got \(3, 5, 8\).*flatten\(0, 1\).*repeat_interleave"
    for call in (
        lambda: gare_similarity(captions, FRAMES, psi),
        lambda: loss(captions, FRAMES, 10.0),
        lambda: garevla.DiscoVLALoss()(captions, FRAMES, 10.0),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    # What the message says to do.
    targets = torch.arange(3).repeat_interleave(5)
    assert loss(captions.flatten(0, 1), FRAMES, 10.0, targets=targets).loss.isfinite()
