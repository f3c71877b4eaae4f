"""The kernels of direction and frame alignment compile for GPUs that are not here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")

SHARED_MEMORY = {"80": 163 * 1024, "90": 227 * 1024, "100": 227 * 1024}  # bytes, of a program
CASES = ["80,bfloat16,512,12", "90,bfloat16,512,12", "100,bfloat16,512,12", "90,float32,512,8"]


@pytest.fixture(scope="module")
def compiled() -> list[dict[str, Any]]:
    """What became of every kernel in every case."""
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.kernels.ahead_of_time", *CASES],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"TRITON_INTERPRET": "0"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.mark.parametrize("case", CASES)
def test_default_configurations(compiled: list[dict[str, Any]], case: str):
    found = [kernel for kernel in compiled if kernel["case"] == case]
    assert len(found) == 6
    for kernel in found:
        assert kernel["shared"] <= SHARED_MEMORY[case.split(",")[0]], kernel
        assert kernel["spills"] == 0, kernel
