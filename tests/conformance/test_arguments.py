"""Wrong arguments of the operations are named."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from garevla.increments.low_rank.factors import PAIR_FACTORS
from tests.conformance.operations import OPERATIONS, Inputs, inputs_of, outputs
from tests.conformance.targets import TARGETS, Target, on_operations

SIZE = (3, 4, 2, 8, 2)


@pytest.mark.parametrize("name", PAIR_FACTORS)
@on_operations(labels=["pair_terms", "pair_statistics"])
def test_factors_that_do_not_fit_are_named(target: Target, operation: str, name: str):
    inputs = inputs_of(operation, SIZE, device=target.device)
    whole = inputs[name]
    # key_bias says how many heads and frames there are: if it is wrong, the next one does not fit.
    named = "rows" if name == "key_bias" else name
    for wrong, error, match in (
        (whole[:, :-1], ValueError, f"{named} must have shape"),
        (whole.float(), TypeError, f"{name} must be"),
    ):
        with pytest.raises(raised_by(target, error), match=match):
            outputs(operation, target.backend, inputs | {name: wrong})


def raised_by(target: Target, error: type) -> tuple[type, ...]:
    """From torch 2.15 on, errors of native's own are RuntimeError: the stable ABI has no other."""
    return (error, RuntimeError) if target.backend == "native" else (error,)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"targets": torch.tensor([0, 1])}, "targets must have shape"),
        ({"targets": torch.tensor([0, 1, 2], dtype=torch.int32)}, "targets must be"),
        ({"samples": torch.tensor([[0, 1], [0, 1]])}, "samples must have shape"),
        ({"samples": torch.tensor([0, 1, 1])}, "samples must have shape"),
        ({"logit_scale": torch.ones(2)}, "logit_scale must be one number"),
        ({"text": torch.ones(3, 8, dtype=torch.float16)}, "(text|rows) must be"),
    ],
    ids=str,
)
@on_operations(labels=["pair_statistics with samples"])
def test_statistics(target: Target, operation: str, changed: Inputs, message: str):
    changed = {name: value.to(target.device) for name, value in changed.items()}
    inputs = inputs_of(operation, SIZE, device=target.device) | changed
    with pytest.raises((TypeError, *raised_by(target, ValueError)), match=message):
        outputs(operation, target.backend, inputs)


def changed_increments(unit: Tensor, basis: Tensor) -> list[tuple[Inputs, type, str]]:
    return [
        ({"basis": basis[:2]}, ValueError, "must have shape"),
        ({"basis": basis[:, :2]}, ValueError, "must have shape"),
        ({"basis": basis[0]}, ValueError, "must have shape"),
        ({"unit": unit[0]}, ValueError, "must have shape"),
        ({"basis": basis.double()}, TypeError, "basis must be"),
    ]


@on_operations(labels=["direction"])
def test_direction(target: Target, operation: str):
    inputs = inputs_of(operation, OPERATIONS[operation].usual, torch.float32, target.device)
    for changed, error, message in changed_increments(inputs["unit"], inputs["basis"]):
        with pytest.raises(raised_by(target, error), match=message):
            outputs(operation, target.backend, inputs | changed)


def changed_frames(inputs: Inputs) -> list[tuple[Inputs, type, str]]:
    captions, frames = inputs["captions"], inputs["frames"]
    caption_mask, frame_mask = inputs["caption_mask"], inputs["frame_mask"]
    return [
        ({"frames": frames[..., :-1]}, ValueError, "captions and frames must have shapes"),
        ({"captions": captions[:0]}, ValueError, "are empty"),
        ({"captions": captions.double()}, TypeError, r"must be torch\.float32"),
        ({"logit_scale": inputs["logit_scale"][None]}, ValueError, "logit_scale must be 0-d"),
        ({"caption_mask": caption_mask.float()}, ValueError, "caption_mask must be bool of shape"),
        ({"frame_mask": frame_mask[:1]}, ValueError, "frame_mask must be bool of shape"),
    ]


@on_operations(TARGETS, labels=["frame_alignment with masks"])
def test_frame_alignment(target: Target, operation: str):
    inputs = inputs_of(operation, OPERATIONS[operation].usual, torch.float32, target.device)
    for changed, error, message in changed_frames(inputs):
        with pytest.raises(error, match=message):
            outputs(operation, target.backend, inputs | changed)
