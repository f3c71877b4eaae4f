"""The published implementation's numbers, from tests/data/golden, decide."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

import garevla
from tests.helpers import GOLDEN, Golden, relative_error

FILES = sorted([*GOLDEN.glob("gare_*.npz"), *GOLDEN.glob("hidden_*.npz")])

pytestmark = pytest.mark.usefixtures("backend")


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def golden(request: pytest.FixtureRequest) -> Iterator[Golden]:
    golden = Golden(request.param)
    with golden.dropout_masks():
        yield golden


def total_loss(golden: Golden, psi, text_features, frame_features):
    """The golden total: the whole loss, or where A ≠ B a weighted sum in InfoNCE's place, with the
    regularizers where the file has them."""
    arguments = golden.loss_arguments()
    mask = golden["mask"]
    if golden.meta["A"] == golden.meta["B"]:
        return garevla.GareLoss(psi, **arguments)(
            text_features, frame_features, golden.meta["scale"], mask
        ).loss
    similarity, increments = garevla.gare_pairs(
        text_features,
        frame_features,
        psi,
        mask,
        pool_temperature=arguments["pool_temperature"],
    )
    weighted = (similarity * golden["weight"].to(similarity.dtype)).sum()
    if "kl" not in golden:
        return weighted
    return (
        weighted
        + arguments["beta"] * garevla.information_bottleneck(increments)
        + arguments["lambda_direction"]
        * garevla.direction_diversity(increments, arguments["alpha"])
        + arguments["lambda_trust"] * garevla.trust_region(increments, arguments["trust_floor"])
    )


def test_all_golden_files_are_here():
    assert len(FILES) == 11


def test_values(golden: Golden):
    psi, text_features, frame_features = golden.psi(), golden["text"], golden["frames"]
    arguments = golden.loss_arguments()
    similarity, increments = garevla.gare_pairs(
        text_features,
        frame_features,
        psi,
        golden["mask"],
        pool_temperature=arguments["pool_temperature"],
    )
    materialised = garevla.gare_increments(text_features, frame_features, psi, golden["mask"])
    assert relative_error(similarity, golden["similarity"]) < 1e-12
    assert relative_error(materialised, golden["delta"]) < 1e-12
    assert relative_error(increments.norm, golden["delta"].norm(dim=2)) < 1e-12
    for value, name in (
        (garevla.information_bottleneck(increments), "kl"),
        (garevla.direction_diversity(increments, arguments["alpha"]), "direction"),
        (garevla.trust_region(increments, arguments["trust_floor"]), "norm"),
        (total_loss(golden, psi, text_features, frame_features), "total"),
    ):
        if name not in golden:
            continue
        assert relative_error(value, golden[name]) < 1e-11, name


@pytest.mark.parametrize("streaming", [False, True])
def test_loss_terms(golden: Golden, streaming: bool):
    if golden.meta["A"] != golden.meta["B"]:
        pytest.skip("the loss module needs as many texts as videos")
    arguments = golden.loss_arguments() | ({"lambda_direction": 0.0} if streaming else {})
    loss = garevla.GareLoss(golden.psi(), **arguments)
    out = loss(golden["text"], golden["frames"], golden.meta["scale"], golden["mask"])
    names = {"contrastive": "nce", "bottleneck": "kl", "trust_region": "norm"}
    for field, stored in (names if streaming else names | {"direction": "direction"}).items():
        assert relative_error(getattr(out, field), golden[stored]) < 1e-11, field


def gradients(golden: Golden, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    psi = golden.psi().to(dtype)
    text_features = golden["text"].to(dtype).requires_grad_()
    frame_features = golden["frames"].to(dtype).requires_grad_()
    total_loss(golden, psi, text_features, frame_features).backward()
    found = {"grad_text": text_features.grad, "grad_frames": frame_features.grad}
    return found | {f"grad_psi.{n}": p.grad for n, p in psi.named_parameters()}


def check_gradients(golden: Golden, found: dict[str, torch.Tensor], tolerance: float) -> None:
    # The key bias shifts all logits of a softmax alike: its true gradient is 0, and only its
    # size beside the other gradients means anything.
    scale = max(golden[name].norm() for name in found)
    for name, gradient in found.items():
        expected = golden[name]
        if name.endswith("k_proj.bias"):
            assert gradient.norm() < tolerance * scale
        else:
            assert relative_error(gradient, expected) < tolerance, name


def test_gradients_float64(golden: Golden):
    check_gradients(golden, gradients(golden, torch.float64), 1e-9)


def test_gradients_float32(golden: Golden):
    check_gradients(golden, gradients(golden, torch.float32), 2e-4)


@pytest.mark.parametrize("mutation", ["zero", "negate", "double"])
def test_a_wrong_gradient_is_noticed(mutation: str):
    golden = Golden(FILES[0])
    found = gradients(golden, torch.float64)
    factor = {"zero": 0.0, "negate": -1.0, "double": 2.0}[mutation]
    for name in found:
        if not name.endswith("k_proj.bias"):
            with pytest.raises(AssertionError):
                check_gradients(golden, found | {name: factor * found[name]}, 2e-4)
