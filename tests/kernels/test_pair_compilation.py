"""The pair kernels, compiled for processors that need not be there, fit them.

A few of the combinations; ``python -m tests.kernels.compilation`` does any.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

SHARED_MEMORY = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
CASES = [  # architecture, (D, F, heads), precision
    (80, (256, 8, 1), "bfloat16"),
    (90, (512, 12, 1), "float32"),
    (90, (512, 12, 1), "bfloat16"),
    (100, (1024, 12, 1), "float32"),
    (100, (768, 32, 1), "bfloat16"),
]
KERNELS = {
    "pair_scores_kernel",
    "pair_statistics_kernel",
    "row_statistics_kernel",
    "pair_adjoint_kernel",
}


@pytest.mark.parametrize(("architecture", "shape", "precision"), CASES, ids=str)
def test_fits(architecture: int, shape: tuple[int, int, int], precision: str):
    # Where the kernels are interpreted nothing compiles: in a process of its own.
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.kernels.compilation"]
    command += ["--architectures", str(architecture), "--precisions", precision]
    command += ["--shapes", ",".join(map(str, shape))]
    result = subprocess.run(
        command,
        cwd=Path(__file__).parents[2],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    reports = [json.loads(line) for line in result.stdout.splitlines()]
    assert {report["kernel"] for report in reports} == KERNELS
    for report in reports:
        assert report["shared"] <= SHARED_MEMORY[architecture], report
        if shape[0] <= 512 and shape[1] <= 16:
            assert report["spill_stores"] == report["spill_loads"] == 0, report
