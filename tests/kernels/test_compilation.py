"""The kernels, compiled for processors that need not be there, fit them.

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
pytestmark = pytest.mark.slow

# Bytes a thread: sixteen registers that go to the L1 cache and back cost less than a product does.
# How many there are depends on the compiler's version; what this forbids is spilling a whole tile.
MOST_SPILLS = 64
SHARED_MEMORY = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}  # bytes, of a program
CASES = [  # architecture, (D, F, heads), precision
    (80, (256, 8, 1), "bfloat16"),
    (90, (512, 12, 1), "float32"),
    (90, (512, 12, 1), "bfloat16"),
    (100, (768, 64, 1), "bfloat16"),
]
KERNELS = {
    "pair_scores_kernel",
    "pair_statistics_kernel",
    "row_statistics_kernel",
    "pair_adjoint_kernel",
    "direction_value_kernel",
    "direction_gradient_kernel",
    "frame_alignment_kernel",
    "frame_alignment_maxima_kernel",
    "frame_alignment_captions_kernel",
    "frame_alignment_frames_kernel",
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
        if architecture >= 90 and shape[0] <= 512 and shape[1] <= 16:
            assert report["spills"] <= MOST_SPILLS, report
    print(result.stdout)
