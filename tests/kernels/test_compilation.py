"""The kernels, compiled for processors that need not be there, fit them.

A few of the combinations; ``python -m tests.kernels.compilation`` does any.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")
pytestmark = pytest.mark.slow

# Bytes a thread: sixteen registers that go to the L1 cache and back cost less than a product does.
# How many there are depends on the compiler's version; what this forbids is spilling a whole tile.
MOST_SPILLS = 64
# The hidden layers' kernels trade some for larger tiles; those of the attention hold the most.
MOST_SPILLS_HIDDEN = {"gap": 128, "attention": 512}
SHARED_MEMORY = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}  # bytes, of a program
CASES = [  # architecture, (D, F, heads, H), precision
    (80, (256, 8, 1, 256), "bfloat16"),
    (90, (512, 12, 1, 512), "float32"),
    (90, (512, 12, 1, 512), "bfloat16"),
    (100, (768, 64, 1, 1024), "bfloat16"),
]
HIDDEN_CASES = [
    (80, (512, 12, 1, 512), "bfloat16"),
    (80, (1024, 12, 1, 768), "tf32"),
    (90, (1024, 12, 1, 768), "bfloat16"),
    (100, (512, 12, 1, 512), "bfloat16"),
    (100, (512, 12, 1, 512), "tf32x3"),
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
HIDDEN_KERNELS = {
    "hidden_forward_kernel",
    "hidden_gradient_kernel",
    "hidden_adjoint_kernel",
    "hidden_weight_kernel",
}


@pytest.mark.parametrize(("architecture", "shape", "precision"), CASES, ids=str)
def test_fits(architecture: int, shape: tuple[int, ...], precision: str):
    reports = compiled(architecture, shape, precision)
    assert {report["kernel"] for report in reports} == KERNELS | HIDDEN_KERNELS


@pytest.mark.parametrize(("architecture", "shape", "precision"), HIDDEN_CASES, ids=str)
def test_hidden_layers_fit(architecture: int, shape: tuple[int, ...], precision: str):
    reports = compiled(architecture, shape, precision, "hidden_")
    kernels = {(report["kernel"], report["layer"]) for report in reports}
    assert kernels == {(kernel, kind) for kernel in HIDDEN_KERNELS for kind in MOST_SPILLS_HIDDEN}


def compiled(
    architecture: int, shape: tuple[int, ...], precision: str, prefix: str = ""
) -> list[dict[str, Any]]:
    """What the kernels use whose names begin so; fails where that is too much."""
    # Where the kernels are interpreted nothing compiles: in a process of its own.
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.kernels.compilation"]
    command += ["--architectures", str(architecture), "--precisions", precision]
    command += ["--shapes", ",".join(map(str, shape)), "--kernels", prefix]
    result = subprocess.run(
        command,
        cwd=Path(__file__).parents[2],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    print(result.stdout)
    reports = [json.loads(line) for line in result.stdout.splitlines()]
    for report in reports:
        assert report["shared"] <= SHARED_MEMORY[architecture], report
        if architecture >= 90 and shape[0] <= 512 and shape[1] <= 16:
            most = MOST_SPILLS_HIDDEN.get(report.get("layer", ""), MOST_SPILLS)
            assert report["spills"] <= most, report
    return reports
