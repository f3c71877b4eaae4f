"""Products of the preset bfloat16 in native's C++, on CPUs that PyTorch does not round on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import garevla
from garevla.ops import native_library, products
from garevla.ops.backends import use_backend
from tests.conformance.operations import Size, inputs_of, results
from tests.helpers import (
    leave_presets_out_of_order,
    output_of,
    random_batch,
    random_psi,
    relative_error,
)

LARGE = (300, 200, 100)
"""Rows, features and outputs of a product that is worth rounding."""

EXACT = 1e-5
"""Equal terms add up their rounding, up to 512 in a row; rounded operands are 2e-3 off."""


@pytest.fixture(autouse=True)
def _needed() -> None:
    if native_library.UNAVAILABLE is not None:
        pytest.skip(native_library.UNAVAILABLE)
    flags = Path("/proc/cpuinfo").read_text().split()
    if "avx512_bf16" not in flags or "amx_bf16" in flags:
        pytest.skip("of CPUs with AVX512-BF16, on which PyTorch does not round for want of AMX")


@pytest.fixture
def bfloat16() -> Iterator[None]:
    with garevla.use_precision("bfloat16"):
        yield


def rounded(x: Tensor) -> Tensor:
    return x.bfloat16().double()


LAYOUTS: dict[str, Callable[[int, int], Tensor]] = {
    "rows": lambda m, n: torch.randn(m, n),
    "columns": lambda m, n: torch.randn(n, m).mT,
    "rows with gaps": lambda m, n: torch.randn(m, 3, n)[:, 1],
    "columns with gaps": lambda m, n: torch.randn(n, 3, m)[:, 1].mT,
    "gaps both ways": lambda m, n: torch.randn(m, 2, n, 2)[:, 0, :, 1],
    "one row": lambda m, n: torch.randn(1, n).expand(m, n),
    "one column": lambda m, n: torch.randn(m, 1).expand(m, n),
    "one number": lambda m, n: torch.randn(1, 1).expand(m, n),
}


@pytest.mark.parametrize("right", LAYOUTS)
@pytest.mark.parametrize("left", LAYOUTS)
def test_operands_are_rounded_and_sums_are_not(left: str, right: str):
    # Ends of tiles, of what is rounded at once, and of vectors.
    for rows, features, columns in [(1, 1, 1), (15, 31, 33), (57, 513, 70), (3, 1030, 2049)]:
        a, b = LAYOUTS[left](rows, features), LAYOUTS[right](features, columns)
        got = torch.ops.garevla_cpu.product_of_rounded(a, b)
        assert got.shape == (rows, columns)
        assert relative_error(got, rounded(a) @ rounded(b)) < EXACT


@pytest.mark.parametrize("shape", [(0, 5, 3), (4, 0, 3), (4, 5, 0)])
def test_empty_products(shape: tuple[int, int, int]):
    rows, features, columns = shape
    got = torch.ops.garevla_cpu.product_of_rounded(
        torch.ones(rows, features), torch.ones(features, columns)
    )
    assert torch.equal(got, torch.zeros(rows, columns))


def test_what_is_no_product():
    product = torch.ops.garevla_cpu.product_of_rounded
    with pytest.raises(RuntimeError, match=r"a \[2, 3\] and b \[4, 5\] must be matrices"):
        product(torch.ones(2, 3), torch.ones(4, 5))
    with pytest.raises(RuntimeError, match="must be float32, got float64"):
        product(torch.ones(2, 3).double(), torch.ones(3, 5))


def test_nothing_that_is_no_number_is_lost():
    a, b = torch.randn(20, 40), torch.randn(40, 50)
    a[3, 5], b[7, 9] = torch.nan, torch.inf
    got = torch.ops.garevla_cpu.product_of_rounded(a, b)
    assert torch.equal(got.isfinite(), (a @ b).isfinite())
    assert got[3].isnan().all()


def test_linear_and_its_gradients(bfloat16: None):
    rows, size, out = LARGE
    x, weight, bias = torch.randn(3, rows // 3, size), torch.randn(out, size), torch.randn(out)
    grad = torch.randn(3, rows // 3, out)
    given = [one.requires_grad_() for one in (x, weight, bias)]
    result = products.linear(*given)
    gradients = torch.autograd.grad(result, given, grad)
    expected = [
        F.linear(rounded(x), rounded(weight), bias.double()),
        rounded(grad) @ rounded(weight),
        rounded(grad.flatten(0, 1)).mT @ rounded(x.flatten(0, 1)),
        grad.double().sum(dim=(0, 1)),
    ]
    for got, want in zip([result, *gradients], expected, strict=True):
        assert relative_error(got, want) < EXACT
    into = products.linear_into(torch.empty(rows, out), x.detach().flatten(0, 1), weight.detach())
    assert relative_error(into, rounded(x.flatten(0, 1)) @ rounded(weight).mT) < EXACT


def test_it_lasts_as_long_as_the_preset():
    rows, size, out = LARGE
    x, weight = torch.randn(rows, size), torch.randn(out, size)
    exact = x.double() @ weight.double().mT

    def error() -> float:
        return relative_error(products.linear(x, weight), exact)

    assert error() < EXACT
    with garevla.use_precision("bfloat16"):
        assert error() > 1e-3
        with garevla.use_precision("float32"):
            assert error() < EXACT
        assert error() > 1e-3
        with pytest.raises(RuntimeError, match="inside"), garevla.use_precision("tf32"):
            raise RuntimeError("inside")
        assert error() > 1e-3
    assert error() < EXACT


SIZES: dict[str, Size] = {
    "pair_terms": (40, 70, 12, 128, 1),
    "pair_statistics with samples": (20, 70, 12, 128, 1),
    "direction": (130, 9, 14, 256),
}


@pytest.mark.parametrize("operation", SIZES)
def test_native_operations_round(operation: str):
    inputs = inputs_of(operation, SIZES[operation], torch.float32)
    exact = results(operation, "native", inputs)
    with garevla.use_precision("bfloat16"):
        got = results(operation, "native", inputs)
    errors = [relative_error(one, other) for one, other in zip(got, exact, strict=True)]
    assert max(errors) > 1e-4, "nothing was rounded"
    # Bounds of a product of 128 and of 256 features, and of sums of some hundreds of such.
    assert errors[0] < 1e-2
    assert max(errors) < 1e-1


@pytest.mark.parametrize("backend", ["eager", "native"])
def test_the_loss_rounds_as_it_does_by_hand(backend: str):
    psi = random_psi(128)
    text, frames, mask = random_batch(64, 64, 8, 128, torch.float32, least_frames=8)

    def outcome(preset: str) -> list[Tensor]:
        with garevla.use_precision(preset), use_backend(backend):
            loss = garevla.GareLoss(psi, lambda_direction=0.1)(text, frames, 20.0, mask).loss
            return [loss, *torch.autograd.grad(loss, [text, frames])]

    exact, got = outcome("float32"), outcome("bfloat16")
    errors = [relative_error(one, other) for one, other in zip(got, exact, strict=True)]
    assert max(errors) > 1e-4, "nothing was rounded"
    assert max(errors) < 5e-2


def test_bits_depend_on_neither_threads_nor_runs(bfloat16: None):
    threads = torch.get_num_threads()
    try:
        for operation, size in SIZES.items():
            found = []
            for number in (1, 2, 2, 3):
                torch.set_num_threads(number)
                inputs = inputs_of(operation, size, torch.float32)
                found.append(results(operation, "native", inputs))
            for others in found[1:]:
                assert all(map(torch.equal, found[0], others)), operation
    finally:
        torch.set_num_threads(threads)


ROUNDS = """
import torch
from garevla.ops import precision
preset = precision.use_precision("bfloat16")
{}
x, one = torch.full((256, 256), 1 + 2**-10), torch.eye(256)
print(not torch.equal(products.linear(x, one), x))
"""


@pytest.mark.parametrize(
    "entered",
    [
        "preset.__enter__(); from garevla.ops import products",
        "from garevla.ops import products\nwith torch.autocast('cpu'): preset.__enter__()",
        "from garevla.ops import products\nwith torch.device('meta'): preset.__enter__()",
        "from garevla.ops import products; torch.set_default_dtype(torch.float64)"
        "; preset.__enter__(); torch.set_default_dtype(torch.float32)",
    ],
    ids=["before the import", "under autocast", "on another device", "with another dtype"],
)
def test_it_holds_from_the_first_time_on(entered: str):
    assert output_of(ROUNDS.format(entered)) == "True\n"


def test_pytorchs_own_setting_moves_hidden_layers_alone():
    rows, size, out = LARGE
    x, weight = torch.randn(rows, size), torch.randn(out, size)
    text, frames, mask = random_batch(48, 48, 4, 128, torch.float32)
    networks = {"hidden": garevla.GapMLPPsi(128, 256), "none": random_psi(128)}

    def similarities() -> dict[str, Tensor]:
        with torch.no_grad():
            return {
                name: garevla.gare_similarity(text, frames, psi, mask, backend="native")
                for name, psi in networks.items()
            }

    exact = similarities()
    torch.set_float32_matmul_precision("medium")
    try:
        linear, found = products.linear(x, weight), similarities()
    finally:
        torch.set_float32_matmul_precision("highest")
    assert relative_error(linear, x.double() @ weight.double().mT) < EXACT
    assert relative_error(found["none"], exact["none"]) < EXACT
    assert relative_error(found["hidden"], exact["hidden"]) > 1e-4


def test_other_threads_switch_nothing_off(bfloat16: None):
    def enter(preset: str) -> None:
        with garevla.use_precision(preset):
            pass

    for preset in ("bfloat16", "float32"):
        thread = threading.Thread(target=enter, args=(preset,))
        thread.start()
        thread.join()
        assert products._native_rounds


def test_whoever_leaves_last_leaves_nothing_on():
    leave_presets_out_of_order()
    assert not products._native_rounds


def test_it_can_be_taken_away():
    script = "import garevla.ops.products as p; print(p.rounds_to_bfloat16())"
    assert output_of(script, GAREVLA_CPU_CAPABILITY="avx2") == "False\n"
    assert output_of(script) == "True\n"
    script = """
import torch
from garevla.ops import native_library
try:
    torch.ops.garevla_cpu.product_of_rounded(torch.ones(2, 2), torch.ones(2, 2))
except RuntimeError as error:
    print(error)
"""
    printed = output_of(script, GAREVLA_CPU_CAPABILITY="baseline")
    assert "this processor has no instruction for products of bfloat16" in printed


def test_vectors_stay_with_torch(bfloat16: None):
    x, weight = torch.randn(4096), torch.randn(1024, 4096)
    assert relative_error(products.linear(x, weight), x.double() @ weight.double().mT) < EXACT
