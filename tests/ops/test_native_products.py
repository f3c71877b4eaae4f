"""float32 products of native's C++ on a CPU: the library that garevla/ops/products.py chooses.

In processes of their own: the C++ is told when it is loaded.
"""

from __future__ import annotations

import re

import pytest

from garevla.ops import products
from tests.conformance.operations import Size
from tests.conformance.targets import Target
from tests.helpers import ONEDNN_CALL, output_of

NATIVE = Target("native", "cpu")
SIZES: dict[str, Size] = {
    "pair_terms": (40, 70, 12, 128, 1),
    "pair_statistics with samples": (20, 70, 12, 128, 1),
    "direction": (130, 9, 14, 256),
}
"""With products that are worth oneDNN's call, forward and backward."""


@pytest.fixture(autouse=True)
def _needed() -> None:
    NATIVE.require()
    if (reason := products.onednn_unavailable()) is not None:
        pytest.skip(reason)


def run(script: str, library: str, **environment: str) -> str:
    """What a script prints where this library is chosen."""
    return output_of(script, **{products.VARIABLE: library}, **environment)


CALL = """
import torch
import garevla.ops.native
torch.manual_seed(0)
unit, basis = torch.randn(130, 5, 9), torch.randn(130, 5, 256)
torch.ops.garevla.direction(unit, basis, 2.0, True)
torch.ops.garevla.direction(unit[:60].double(), basis[:60].double(), 2.0, True)
torch.ops.garevla.direction(unit[:60], basis[:60], 2.0, True)
"""


@pytest.mark.parametrize(
    ("library", "expected"),
    # The rule's trial; a text's Gram matrix and the gradient through it. The last two rows of the
    # former are not worth a call, nor are 60 videos; float64 is not for oneDNN.
    [("onednn", {"mb3ic5oc2": 1, "mb128ic256oc130": 9, "mb130ic130oc256": 9}), ("torch", {})],
)
def test_large_products_and_no_others_are_onednns(library: str, expected: dict[str, int]):
    printed = run(CALL, library, ONEDNN_VERBOSE="1")
    shapes = [call["shape"] for call in re.finditer(ONEDNN_CALL, printed)]
    assert {shape: shapes.count(shape) for shape in shapes} == expected


GAPS = """
import torch
import garevla.ops.native
# The gradient through a part of the texts: their increments lie apart, one of each video after
# the other, and a product with 66 of the basis is worth a call.
unit, basis = torch.randn(16, 66, 200), torch.randn(16, 66, 512)
torch.ops.garevla.direction(unit, basis, 2.0, True)
"""


def test_no_product_is_left_to_onednns_reference_code():
    calls = list(re.finditer(ONEDNN_CALL, run(GAPS, "onednn", ONEDNN_VERBOSE="1")))
    assert len(calls) > 16
    assert not any(call["implementation"].startswith("ref") for call in calls)


AGREEMENT = f"""
from tests.conformance.agreement import check_agreement
from tests.conformance.targets import Target
for operation, size in {SIZES}.items():
    check_agreement(Target("native", "cpu"), operation, size)
"""


def test_results_are_as_exact():
    run(AGREEMENT, "onednn")


BITS = f"""
import torch
import tests.conformance.targets
from tests.conformance.operations import inputs_of, results
for operation, size in {SIZES}.items():
    found = []
    for threads in (1, 2, 2, 3):
        torch.set_num_threads(threads)
        found.append(results(operation, "native", inputs_of(operation, size, torch.float32)))
    for others in found[1:]:
        assert all(torch.equal(one, other) for one, other in zip(found[0], others)), operation
    total = sum(float(tensor.double().abs().sum()) for tensor in found[0])
    print(operation, total.hex())
"""


def test_bits_depend_on_neither_threads_nor_runs():
    first = run(BITS, "onednn")
    assert first == run(BITS, "onednn")
    # Sums in another order: had the choice no effect, the bits would be the same.
    assert first != run(BITS, "torch")
