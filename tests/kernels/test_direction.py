"""What the directional diversity's kernels alone have: presets, chunks, launches."""

from __future__ import annotations

import importlib

import pytest
import torch

import garevla
from tests.conformance.error_model import expected, outcome
from tests.conformance.operations import ALPHA, inputs_of, results
from tests.conformance.targets import TRITON
from tests.head.test_memory import LargestTensor
from tests.helpers import relative_error

if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed", allow_module_level=True)
kernels = importlib.import_module("garevla.kernels.direction")
launching = importlib.import_module("garevla.kernels.launching")

USUAL = (4, 9, 3, 24)  # texts, videos, basis vectors, dim


def increments(*size: int) -> list[torch.Tensor]:
    inputs = inputs_of("direction", size, torch.float32, TRITON.device)
    return [inputs[name].detach() for name in ("unit", "basis")]


@pytest.mark.parametrize(
    ("precision", "bound"), [("tf32x3", 2e-6), ("tf32", 4e-3), ("bfloat16", 2e-2)]
)
def test_precisions(precision: str, bound: float):
    size = (2, 65, 4, 130)
    (exact,) = expected("direction", size)
    with garevla.use_precision(precision):
        inputs = inputs_of("direction", size, torch.float32, TRITON.device)
        (found,) = outcome("direction", "triton", inputs)
    assert all(relative_error(found[name], want) < bound for name, want in exact.items())
    if precision == "bfloat16":  # or it would not have been in effect
        assert relative_error(found["unit"], exact["unit"]) > 1e-4


def test_unknown_precision():
    with pytest.raises(ValueError, match="precision must be one of"):
        kernels.direction(*increments(*USUAL), ALPHA, "float16")


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch):
    inputs = inputs_of("direction", (7, 20, 3, 24), torch.float32, TRITON.device)
    whole = results("direction", "triton", inputs)
    monkeypatch.setattr("garevla.kernels.configs.DIRECTION_INCREMENTS", 3 * 20 * 24)
    for got, want in zip(results("direction", "triton", inputs), whole, strict=True):
        assert relative_error(got, want) < 1e-6


def test_launches_are_recorded():
    recorded = []
    with launching.recording(lambda *launch: recorded.append(launch)):
        for with_gradient in (False, True):
            kernels.direction_and_gradient(*increments(*USUAL), ALPHA, with_gradient, "bfloat16")
    names = [kernel.__name__ for kernel, *_ in recorded]
    assert names == ["direction_value_kernel", "direction_gradient_kernel"]
    for kernel, arguments, options in recorded:
        assert set(arguments) == set(kernel.arg_names)
        assert set(options) >= {"num_warps", "num_stages"}
        assert arguments["directions"].dtype == torch.bfloat16


def test_no_gram_matrix_is_stored():
    texts, videos, vectors, dim = 4, 64, 3, 16
    inputs = increments(texts, videos, vectors, dim)
    with LargestTensor() as largest:  # which sees nothing inside an operator
        kernels.direction_and_gradient(*inputs, ALPHA, True, "float32")
    assert largest.elements == videos * texts * dim
