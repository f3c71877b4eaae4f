"""The walk over tiles: nothing depends on how pairs are cut, and little is in memory at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import garevla
from garevla.ops.eager.hidden import EagerFunctions
from garevla.ops.hidden import scores as pair
from tests.conformance.agreement import check_gradients
from tests.conformance.operations import OPERATIONS, inputs_of, outputs, results
from tests.conformance.targets import EAGER
from tests.conformance.test_operators import operator_calls
from tests.head.test_streaming import allocations
from tests.helpers import random_batch, relative_error

LABELS = [label for label in OPERATIONS if label.startswith("hidden")]
KINDS = {
    "gap": lambda dim: garevla.GapMLPPsi(dim, 2 * dim, dropout=0.2),
    "attention": lambda dim: garevla.CrossAttentionPsi(dim, 1, 0.3, "pair"),
}


@pytest.mark.parametrize("rows", [1, 5, 12, 40])
@pytest.mark.parametrize("operation", LABELS)
def test_the_tiles_size_changes_nothing(operation: str, rows: int, monkeypatch: pytest.MonkeyPatch):
    inputs = inputs_of(operation, OPERATIONS[operation].usual)
    whole = results(operation, "eager", inputs)
    monkeypatch.setattr(EagerFunctions, "rows", rows)
    for found, want in zip(results(operation, "eager", inputs), whole, strict=True):
        assert relative_error(found, want) < 1e-12 or want.norm() < 1e-12


@pytest.mark.parametrize("operation", LABELS)
def test_gradients(operation: str):
    check_gradients(EAGER, operation, OPERATIONS[operation].prepare)


@pytest.mark.parametrize("operation", LABELS)
def test_the_backward_pass_multiplies_in_the_forwards_precision(
    operation: str, monkeypatch: pytest.MonkeyPatch
):
    found: list[str] = []
    scores_adjoint = pair.scores_adjoint

    def noted(*arguments: Any) -> Any:
        found.append(torch.get_float32_matmul_precision())
        return scores_adjoint(*arguments)

    monkeypatch.setattr(pair, "scores_adjoint", noted)
    inputs = inputs_of(operation, OPERATIONS[operation].tiny, torch.float32)
    with garevla.use_precision("tf32"):
        value = outputs(operation, "eager", inputs)[0].sum()
    value.backward()
    assert set(found) == {"high"}
    assert torch.get_float32_matmul_precision() == "highest"


@pytest.mark.slow
@pytest.mark.parametrize("operation", LABELS)
def test_opcheck(operation: str):
    for function, arguments in operator_calls(EAGER, operation, torch.float32):
        torch.library.opcheck(function, arguments)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("backend")
def test_the_streaming_loss_allocates_nothing_of_texts_times_videos(kind: str):
    batch, dim = 500, 4
    psi = KINDS[kind](dim)
    text, frames, _ = random_batch(batch, batch, 1, dim, torch.float32)
    loss = garevla.GareLoss(psi, lambda_direction=0.0)
    found = allocations(lambda: loss(text, frames, 20.0).loss)
    assert max(found) < 4 * batch**2 / 2


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("arguments", [{}, {"direction_samples": 4}], ids=["exact", "samples"])
@pytest.mark.usefixtures("backend")
def test_nothing_holds_a_vector_per_pair(kind: str, arguments: dict[str, int]):
    batch, dim = 256, 64
    psi = KINDS[kind](dim)
    text, frames, _ = random_batch(batch, batch, 2, dim, torch.float32)
    loss = garevla.GareLoss(psi, **arguments)
    found = allocations(lambda: loss(text, frames, 20.0).loss)
    assert max(found) < 4 * batch**2 * dim / 2


@pytest.mark.parametrize("kind", KINDS)
def test_materialized_increments_are_seen(kind: str):
    text, frames, _ = random_batch(64, 64, 2, 32, torch.float32)
    psi = KINDS[kind](32)
    found = allocations(lambda: garevla.gare_increments(text, frames, psi).sum())
    assert max(found) >= 4 * 64 * 64 * 32


WRONG = [
    ({"frames": torch.zeros(2, 2, 5)}, ValueError, r"frames must have shape \(B, F, D\)"),
    ({"weight": torch.zeros(4, 5).double()}, TypeError, "weight must be torch.float32"),
    ({"frame_mask": torch.ones(2, 2)}, TypeError, "frame_mask must be torch.bool"),
    ({"shift": torch.zeros(4)}, ValueError, "shift must have shape"),
    ({"targets": torch.zeros(2, dtype=torch.int64)}, ValueError, "targets must have shape"),
    ({"targets": torch.zeros(3)}, TypeError, "targets must be torch.int64"),
    ({"targets": torch.tensor([0, 1, 2])}, IndexError, r"targets must be in \[0, 2\)"),
    ({"logit_scale": torch.ones(2)}, ValueError, "logit_scale must be one number"),
    ({"seed": None}, ValueError, "dropout needs a seed"),
    ({"text": torch.zeros(0, 4)}, ValueError, "must not be empty"),
]


@pytest.mark.parametrize(("changed", "error", "message"), WRONG, ids=lambda value: str(value)[:20])
@pytest.mark.parametrize("kind", KINDS)
def test_wrong_arguments_are_named(kind: str, changed, error: type[Exception], message: str):
    operation = f"hidden_statistics of {kind}"
    inputs = inputs_of(operation, OPERATIONS[operation].tiny, torch.float32) | changed
    if "text" in changed and kind == "gap":
        inputs["text_hidden"] = torch.zeros(0, 5)
    with pytest.raises(error, match=message):
        outputs(operation, "eager", inputs)
