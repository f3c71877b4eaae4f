"""The directional diversity in Triton, against its eager namesake."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from torch import Tensor

from garevla.kernels import launching
from garevla.ops.eager.direction import direction as eager
from tests.head.test_memory import LargestTensor
from tests.helpers import relative_error

pytest.importorskip("triton")
kernels = importlib.import_module("garevla.kernels.direction")

ALPHA = 2.0
SIZES = [  # videos, basis vectors, texts, dim
    (1, 3, 1, 65),
    (5, 3, 7, 24),
    (65, 4, 1, 130),
    (33, 26, 3, 16),
    (63, 1, 2, 17),
    (130, 2, 1, 7),
]


def increments(size: tuple[int, ...]) -> list[Tensor]:
    """Coefficients (B, K, A) of unit increments and their basis (B, K, D), float64 leaves."""
    videos, vectors, texts, dim = size
    basis = torch.randn(videos, vectors, dim, dtype=torch.float64)
    coefficients = torch.randn(videos, vectors, texts, dtype=torch.float64)
    length = torch.einsum("bka,bkd->bda", coefficients, basis).norm(dim=1, keepdim=True)
    return [(coefficients / length).requires_grad_(), basis.requires_grad_()]


def in_float32(inputs: list[Tensor]) -> list[Tensor]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return [x.detach().to(device, torch.float32).requires_grad_() for x in inputs]


def outcome(function: Any, inputs: list[Tensor], *options: Any) -> list[Tensor]:
    """The mean inside the logarithm (of one video the value is 0), and the gradients."""
    value = function(*inputs, ALPHA, *options)
    return [x.cpu() for x in (value.exp(), *torch.autograd.grad(3 * value, inputs))]


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_values_and_gradients(size: tuple[int, ...]):
    inputs = increments(size)
    exact = outcome(eager, inputs)
    plain = outcome(eager, in_float32(inputs))
    found = outcome(kernels.direction, in_float32(inputs))
    for got, reference, want in zip(found, plain, exact, strict=True):
        assert relative_error(got, want) <= 3 * relative_error(reference, want) + 2e-7


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_value_alone(size: tuple[int, ...]):
    inputs = in_float32(increments(size))
    with torch.no_grad():
        alone = kernels.direction(*inputs, ALPHA)
    assert relative_error(alone.exp(), kernels.direction(*inputs, ALPHA).exp()) < 1e-6


@pytest.mark.parametrize(
    ("precision", "bound"), [("tf32x3", 2e-6), ("tf32", 4e-3), ("bfloat16", 2e-2)]
)
def test_precisions(precision: str, bound: float):
    inputs = increments((65, 4, 2, 130))
    exact = outcome(eager, inputs)
    found = outcome(kernels.direction, in_float32(inputs), precision)
    assert all(relative_error(a, b) < bound for a, b in zip(found, exact, strict=True))
    if precision == "bfloat16":
        assert relative_error(found[1], exact[1]) > 1e-4  # or it would not have been in effect


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch):
    inputs = in_float32(increments((20, 3, 7, 24)))
    whole = outcome(kernels.direction, inputs)
    monkeypatch.setattr("garevla.kernels.configs.DIRECTION_INCREMENTS", 3 * 20 * 24)
    for a, b in zip(outcome(kernels.direction, inputs), whole, strict=True):
        assert relative_error(a, b) < 1e-6


def test_bits_repeat():
    inputs = in_float32(increments((65, 4, 3, 24)))
    once, again = (outcome(kernels.direction, inputs) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))


def test_non_contiguous_inputs():
    inputs = in_float32(increments((9, 3, 4, 24)))
    strided = [torch.stack([x, x], dim=-1)[..., 0] for x in inputs]
    value, want = kernels.direction(*strided, ALPHA), kernels.direction(*inputs, ALPHA)
    assert torch.equal(value, want)
    for a, b in zip(
        torch.autograd.grad(value, inputs), torch.autograd.grad(want, inputs), strict=True
    ):
        assert relative_error(a, b) < 1e-6


def test_autocast_changes_nothing():
    inputs = in_float32(increments((9, 3, 4, 24)))
    plain = outcome(kernels.direction, inputs)
    with torch.autocast(inputs[0].device.type, torch.bfloat16):
        found = outcome(kernels.direction, inputs)
    assert all(torch.equal(a, b) for a, b in zip(found, plain, strict=True))


def test_launches_are_recorded():
    recorded = []
    inputs = [x.detach() for x in in_float32(increments((9, 3, 4, 24)))]
    with launching.recording(lambda *launch: recorded.append(launch)):
        for with_gradient in (False, True):
            kernels.direction_and_gradient(*inputs, ALPHA, with_gradient, "bfloat16")
    names = [kernel.__name__ for kernel, *_ in recorded]
    assert names == ["direction_value_kernel", "direction_gradient_kernel"]
    for kernel, arguments, options in recorded:
        assert set(arguments) == set(kernel.arg_names)
        assert set(options) >= {"num_warps", "num_stages"}
        assert arguments["directions"].dtype == torch.bfloat16


def test_one_gradient_alone():
    unit, basis = in_float32(increments((9, 3, 4, 24)))
    _, want_unit, want_basis = outcome(kernels.direction, [unit, basis])
    (got,) = torch.autograd.grad(3 * kernels.direction(unit, basis.detach(), ALPHA), unit)
    assert torch.equal(got.cpu(), want_unit)
    (got,) = torch.autograd.grad(3 * kernels.direction(unit.detach(), basis, ALPHA), basis)
    assert torch.equal(got.cpu(), want_basis)


def test_no_gram_matrix_is_stored():
    videos, vectors, texts, dim = 64, 3, 4, 16
    inputs = [x.detach() for x in in_float32(increments((videos, vectors, texts, dim)))]
    with LargestTensor() as largest:  # which sees nothing inside an operator
        kernels.direction_and_gradient(*inputs, ALPHA, True, "float32")
    assert largest.elements == videos * texts * dim


@pytest.mark.parametrize("with_gradient", [False, True])
def test_opcheck(with_gradient: bool):
    inputs = in_float32(increments((5, 3, 4, 24)))
    if not with_gradient:
        inputs = [x.detach() for x in inputs]
    arguments = (*inputs, ALPHA, with_gradient, "float32")
    torch.library.opcheck(torch.ops.garevla_triton.direction.default, arguments)


def test_compiled():
    inputs = in_float32(increments((5, 3, 4, 24)))
    compiled = torch.compile(kernels.direction, fullgraph=True, backend="aot_eager")
    for a, b in zip(outcome(compiled, inputs), outcome(kernels.direction, inputs), strict=True):
        assert relative_error(a, b) < 1e-6


def test_no_second_derivative():
    inputs = in_float32(increments((5, 3, 4, 24)))
    value = kernels.direction(*inputs, ALPHA)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(value, inputs, create_graph=True)


def test_wrong_arguments():
    unit, basis = in_float32(increments((5, 3, 4, 24)))
    for wrong in (basis[:2], basis[:, :2], basis[0]):
        with pytest.raises(ValueError, match="basis must have shape"):
            kernels.direction(unit, wrong, ALPHA)
    with pytest.raises(ValueError, match="unit_coefficients must have shape"):
        kernels.direction(unit[0], basis, ALPHA)
    with pytest.raises(TypeError, match=r"must be torch\.float32"):
        kernels.direction(unit.double(), basis.double(), ALPHA)
    with pytest.raises(ValueError, match="precision must be one of"):
        kernels.direction(unit, basis, ALPHA, "float16")
