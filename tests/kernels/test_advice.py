"""When "auto" leaves the directional diversity to native on a GPU; pairs: tests/ops."""

from __future__ import annotations

import pytest
import torch

import garevla
from garevla.kernels import backend
from garevla.ops import backends


@pytest.mark.parametrize("precision", ["float32", "tf32x3", "tf32", "bfloat16"])
def test_direction(monkeypatch: pytest.MonkeyPatch, precision):
    monkeypatch.setattr(backend, "_native_runs", lambda device_type: True)
    entry = backends._BACKENDS["triton"].operations["direction"]
    with garevla.use_precision(precision):
        reason = entry.disadvises(torch.zeros(3, 4, 5), torch.zeros(3, 4, 6), 2.0)
    assert (reason is None) == (precision == "bfloat16")
