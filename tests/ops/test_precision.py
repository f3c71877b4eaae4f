"""float32 and half precision against float64, by DESIGN's error model: a small multiple of the
error that the published formulas make in the same dtype."""

from __future__ import annotations

import pytest
import torch

import garevla
from garevla.ops.precision import current_precision
from garevla.reference import gare as reference
from tests.helpers import (
    check_small_gaps,
    leave_presets_out_of_order,
    random_batch,
    random_psi,
    relative_error,
)

pytestmark = pytest.mark.usefixtures("backend")


@pytest.mark.parametrize("lambda_direction", [0.0, 0.1])
@pytest.mark.parametrize(("frames", "dim", "heads"), [(12, 256, 1), (1, 64, 1), (5, 128, 4)])
def test_float32_is_as_exact_as_the_published_formulas(frames, dim, heads, lambda_direction):
    psi = random_psi(dim, heads)
    text, frame_features, mask = random_batch(24, 24, frames, dim, torch.float32)
    exact_psi = random_psi(dim, heads).double()
    exact_psi.load_state_dict(psi.state_dict())
    exact_text, exact_frames = (x.detach().double() for x in (text, frame_features))
    weights = {"beta": 1e-2, "lambda_trust": 0.1, "trust_floor": 1e3}
    weights["lambda_direction"] = lambda_direction

    def outcome(function, psi, text, frames):
        text, frames = text.detach().requires_grad_(), frames.detach().requires_grad_()
        loss = function(psi, text, frames)
        parameters = [p for n, p in psi.named_parameters() if "k_proj.bias" not in n]
        return [loss, *torch.autograd.grad(loss, [text, frames, *parameters])]

    def published(psi, text, frames):
        return reference.loss(text, frames, psi, 20.0, mask, **weights)

    def factored(psi, text, frames):
        return garevla.GareLoss(psi, **weights)(text, frames, 20.0, mask).loss

    exact = outcome(published, exact_psi, exact_text, exact_frames)
    direct = outcome(published, psi, text, frame_features)
    actual = outcome(factored, psi, text, frame_features)
    for got, same_dtype, want in zip(actual, direct, exact, strict=True):
        allowed = 3 * relative_error(same_dtype, want) + 1e-6
        assert relative_error(got, want) < allowed


@pytest.mark.parametrize("gap", [1.0, 1e-1, 1e-2])
@pytest.mark.parametrize("alike", ["every pair", "the matching pair"])
def test_small_gaps_do_not_cancel(gap: float, alike: str):
    check_small_gaps(gap, alike)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_inputs_accumulate_in_float32(dtype: torch.dtype):
    psi = random_psi(32)
    text, frames, mask = random_batch(5, 6, 4, 32, torch.float32)
    text, frames = text.detach().to(dtype), frames.detach().to(dtype)
    got = garevla.gare_similarity(text, frames, psi, mask)
    want = reference.pairs(text.double(), frames.double(), random_like(psi), mask).similarity
    assert got.dtype == torch.float32
    assert relative_error(got, want) < 1e-6


def random_like(psi):
    copy = garevla.CrossAttentionPsi(psi.dim, psi.num_heads).double()
    copy.load_state_dict(psi.state_dict())
    return copy


@pytest.mark.parametrize("lambda_direction", [0.0, 0.01])
def test_autocast_leaves_the_head_alone(lambda_direction: float):
    psi = random_psi(32)
    text, frames, mask = random_batch(5, 5, 4, 32, torch.float32)
    loss = garevla.GareLoss(psi, lambda_direction=lambda_direction)

    want = loss(text, frames, 20.0, mask).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = loss(text, frames, 20.0, mask).loss
    assert got.dtype == torch.float32
    assert torch.equal(got, want)
    for a, b in zip(
        torch.autograd.grad(got, [text, frames, psi.mean_proj.weight]),
        torch.autograd.grad(want, [text, frames, psi.mean_proj.weight]),
        strict=True,
    ):
        assert torch.equal(a, b)


def test_dtypes_promote_to_the_widest():
    psi = random_psi(8).double()
    text, frames, _ = random_batch(2, 2, 2, 8, torch.float32)
    assert garevla.gare_similarity(text, frames, psi).dtype == torch.float64
    assert garevla.gare_similarity(text.double(), frames, psi.float()).dtype == torch.float64


@pytest.mark.parametrize("name", ["float32", "tf32x3", "tf32", "bfloat16"])
def test_named_precisions_hold_inside_only(name: str, backend: str):
    before = torch.get_float32_matmul_precision()
    psi = random_psi(64)
    text, frames, mask = random_batch(9, 7, 5, 64, torch.float32)
    exact = garevla.gare_similarity(text, frames, psi, mask)
    with garevla.use_precision(name):
        inside = garevla.gare_similarity(text, frames, psi, mask)
    assert torch.get_float32_matmul_precision() == before
    assert inside.dtype == torch.float32
    assert relative_error(inside, exact) < (3e-2 if name == "bfloat16" else 1e-6)


def test_threads_that_leave_in_another_order_leave_pytorchs_setting():
    before = torch.get_float32_matmul_precision()
    leave_presets_out_of_order()
    assert torch.get_float32_matmul_precision() == before


def test_unknown_precision():
    with pytest.raises(ValueError, match="precision must be one of"), garevla.use_precision("half"):
        pass


def test_the_preset_in_force():
    assert current_precision() == "float32"
    for setting, name in (("high", "tf32"), ("medium", "bfloat16"), ("highest", "float32")):
        torch.set_float32_matmul_precision(setting)
        assert current_precision() == name
    with garevla.use_precision("tf32"), garevla.use_precision("tf32x3"):
        assert current_precision() == "tf32x3"
        assert torch.get_float32_matmul_precision() == "highest"


@pytest.mark.skipif(
    not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="this PyTorch has no such"
)
def test_precision_set_backend_by_backend():
    """PyTorch then refuses to name its setting; it is left as it was all the same."""
    settings = torch.backends.cuda.matmul
    before = settings.fp32_precision
    try:
        settings.fp32_precision = "tf32"
        assert current_precision() == "tf32"
        with garevla.use_precision("float32"):
            assert current_precision() == "float32"
            assert settings.fp32_precision != "tf32"
        assert settings.fp32_precision == "tf32"
    finally:
        settings.fp32_precision = before
    assert torch.get_float32_matmul_precision() == "highest"
