"""What "auto" leaves to native on a GPU, where both run."""

from __future__ import annotations

import pytest
import torch

import garevla
from garevla.kernels import backend
from garevla.ops import backends
from tests.conformance.operations import OPERATIONS, inputs_of

SMALL, LARGE = (3, 2, 2, 4, 1), (2**17, 2, 1, 2, 1)


@pytest.mark.parametrize(
    ("precision", "size", "native"),
    [
        ("float32", LARGE, True),
        ("tf32x3", LARGE, True),
        ("tf32", LARGE, False),
        ("bfloat16", LARGE, False),
        ("bfloat16", SMALL, True),
    ],
)
def test_pairs(monkeypatch: pytest.MonkeyPatch, precision, size, native):
    arguments = OPERATIONS["pair_similarity"].arguments(
        inputs_of("pair_similarity", size, torch.float32)
    )
    entry = backends._BACKENDS["triton"].operations["pair_similarity"]
    with garevla.use_precision(precision):
        monkeypatch.setattr(backend, "_native_runs", lambda device_type: True)
        assert (entry.disadvises(*arguments) is not None) == native
        monkeypatch.setattr(backend, "_native_runs", lambda device_type: False)
        assert entry.disadvises(*arguments) is None


@pytest.mark.parametrize("precision", ["float32", "tf32x3", "tf32", "bfloat16"])
def test_direction(monkeypatch: pytest.MonkeyPatch, precision):
    monkeypatch.setattr(backend, "_native_runs", lambda device_type: True)
    entry = backends._BACKENDS["triton"].operations["direction"]
    with garevla.use_precision(precision):
        reason = entry.disadvises(torch.zeros(3, 4, 5), torch.zeros(3, 4, 6), 2.0)
    assert (reason is None) == (precision == "bfloat16")
