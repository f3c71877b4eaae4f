"""The one place of CPU products: the rule, the library behind it, and that the head uses it."""

from __future__ import annotations

import re

import pytest
import torch
import torch.nn.functional as F

import garevla
from garevla.ops import products
from garevla.ops.backends import use_backend
from garevla.utils.versions import version_numbers
from tests.helpers import ONEDNN_CALL, output_of, random_batch, random_psi, relative_error

LARGE = (300, 200, 100)
"""Rows, features and outputs of a product that is worth oneDNN's call."""

needs_onednn = pytest.mark.skipif(
    products.onednn_unavailable() is not None, reason=f"{products.onednn_unavailable()}"
)


@pytest.fixture
def onednn(monkeypatch):
    """oneDNN chosen by the environment; yields a list that grows by one with each of its calls."""
    calls = []
    product = products.onednn_linear

    def counted(*arguments):
        calls.append(arguments)
        return product(*arguments)

    monkeypatch.setenv(products.VARIABLE, "onednn")
    monkeypatch.setattr(products, "onednn_linear", counted)
    products._choose.cache_clear()
    yield calls
    products._choose.cache_clear()


@pytest.fixture
def fresh_rule(monkeypatch):
    monkeypatch.delenv(products.VARIABLE, raising=False)
    products._choose.cache_clear()
    yield monkeypatch
    products._choose.cache_clear()


@needs_onednn
@pytest.mark.parametrize(
    ("processor", "capability", "expected"),
    [
        (("AuthenticAMD", 26), "AVX512", "onednn"),
        (("AuthenticAMD", 25), "AVX512", "torch"),
        (("AuthenticAMD", 26), "AVX2", "torch"),
        (("GenuineIntel", 6), "AVX512", "torch"),
        (("", 0), "DEFAULT", "torch"),
    ],
)
def test_the_rule(fresh_rule, processor, capability, expected):
    fresh_rule.setattr(products, "_processor", lambda: processor)
    fresh_rule.setattr(products, "_capability", lambda: capability)
    assert products.library() == expected


def test_the_rule_without_the_operator(fresh_rule):
    fresh_rule.setattr(products, "_processor", lambda: ("AuthenticAMD", 26))
    fresh_rule.setattr(products, "_capability", lambda: "AVX512")
    fresh_rule.setattr(products, "onednn_unavailable", lambda: "it is gone")
    assert products.library() == "torch"
    products._choose.cache_clear()
    fresh_rule.setenv(products.VARIABLE, "onednn")
    with pytest.raises(RuntimeError, match="it is gone"):
        products.library()


def test_an_unknown_library_is_named(fresh_rule):
    fresh_rule.setenv(products.VARIABLE, "mkl")
    with pytest.raises(ValueError, match=r"GAREVLA_CPU_PRODUCTS must be one of.*'mkl'"):
        products.library()


@needs_onednn
def test_linear_is_exact_with_its_gradients(onednn):
    rows, size, out = LARGE
    inputs = [torch.randn(3, rows // 3, size), torch.randn(out, size), torch.randn(out)]
    grad = torch.randn(3, rows // 3, out)

    def outcome(function, dtype):
        given = [x.to(dtype).requires_grad_() for x in inputs]
        result = function(*given)
        return [result, *torch.autograd.grad(result, given, grad.to(dtype))]

    exact = outcome(F.linear, torch.float64)
    plain = outcome(F.linear, torch.float32)
    actual = outcome(products.linear, torch.float32)
    assert len(onednn) == 3
    for got, same_dtype, want in zip(actual, plain, exact, strict=True):
        assert got.shape == want.shape
        assert relative_error(got, want) < 3 * relative_error(same_dtype, want) + 1e-6


LAYOUTS = """
import torch
from garevla.ops.products import onednn_linear
x = torch.randn(30, 20)
for weight in (
    torch.randn(40, 20),
    torch.randn(20, 40).mT,
    torch.randn(40, 3, 20)[:, 1],
    torch.randn(20, 3, 40)[:, 1].mT,
    torch.randn(40, 20, 2)[:, :, 0],
    torch.randn(1, 20).expand(40, 20),
    torch.randn(40, 1).expand(40, 20),
):
    product = onednn_linear(x, weight)
    assert torch.allclose(product.double(), x.double() @ weight.double().mT, atol=1e-4)
"""


@needs_onednn
def test_no_layout_is_left_to_onednns_reference_code():
    printed = output_of(LAYOUTS, ONEDNN_VERBOSE="1")
    used = [call["implementation"] for call in re.finditer(ONEDNN_CALL, printed)]
    assert len(used) == 7
    assert not any(name.startswith("ref") for name in used), used


@needs_onednn
@pytest.mark.parametrize("transposed", [False, True])
def test_batched_products_are_exact(onednn, transposed):
    left, right = torch.randn(2, 300, 200), torch.randn(2, 200, 100)
    if transposed:
        left = left.mT.contiguous().mT
    want = left.double() @ right.double()
    got = products.batched(left, right)
    assert len(onednn) == 2
    assert relative_error(got, want) < 3 * relative_error(left @ right, want) + 1e-6


@needs_onednn
def test_what_stays_with_torch(onednn):
    rows, size, out = LARGE
    small, large = torch.randn(8, size), torch.randn(rows, size)
    weight = torch.randn(out, size)
    products.linear(small, weight)
    products.linear(large.double(), weight.double())
    products.linear(large.bfloat16(), weight.bfloat16())
    with garevla.use_precision("bfloat16"):
        products.linear(large, weight)
    assert products.batched(torch.randn(0, 300, 200), torch.randn(0, 200, 100)).shape[0] == 0
    assert not onednn


@needs_onednn
@pytest.mark.parametrize("lambda_direction", [0.0, 0.1])
def test_the_loss_with_onednn_is_as_exact(onednn, backend, lambda_direction):
    psi = random_psi(128)
    text, frames, mask = random_batch(64, 64, 8, 128, torch.float32, least_frames=8)

    def outcome(dtype):
        module = random_psi(128).to(dtype)
        module.load_state_dict(psi.state_dict())
        given = [x.detach().to(dtype).requires_grad_() for x in (text, frames)]
        loss = garevla.GareLoss(module, lambda_direction=lambda_direction)
        value = loss(given[0], given[1], 20.0, mask).loss
        return [value, *torch.autograd.grad(value, given)]

    actual = outcome(torch.float32)
    assert onednn, "no product of the loss went through this place"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(products, "library", lambda: "torch")
        plain = outcome(torch.float32)
    for got, same_dtype, want in zip(actual, plain, outcome(torch.float64), strict=True):
        assert relative_error(got, want) < 3 * relative_error(same_dtype, want) + 1e-6


@needs_onednn
def test_hidden_layers_use_it(onednn):
    torch.manual_seed(0)
    psi = garevla.GapMLPPsi(128, 256)
    text, frames, mask = random_batch(48, 48, 4, 128, torch.float32)
    with use_backend("eager"):
        value = garevla.GareLoss(psi)(text, frames, 20.0, mask).loss
        value.backward()
    assert len(onednn) >= 4, "the forward product, again, and two of the gradient"


@needs_onednn
def test_bits_repeat_with_any_number_of_threads(onednn):
    rows, size, out = 3000, 512, 512
    inputs = torch.randn(rows, size), torch.randn(out, size)
    grad = torch.randn(rows, out)
    threads = torch.get_num_threads()
    try:
        found = []
        for number in (1, 2, 2):
            torch.set_num_threads(number)
            given = [x.clone().requires_grad_() for x in inputs]
            result = products.linear(*given)
            found.append([result, *torch.autograd.grad(result, given, grad)])
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


# Older compilers overwrite a constant function by its name where the compiled function lives.
@pytest.mark.skipif(version_numbers(torch.__version__) < (2, 8), reason="overwrites library()")
@needs_onednn
def test_the_operator_obeys_torch_library(onednn):
    rows, size, out = LARGE
    x, weight = (torch.randn(n, size, requires_grad=True) for n in (rows, out))
    torch.library.opcheck(torch.ops.garevla_products.linear, (x, weight, None))
    torch.library.opcheck(torch.ops.garevla_products.linear, (x, weight, torch.randn(out)))
    compiled = torch.compile(products.linear, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x, weight), products.linear(x, weight))
