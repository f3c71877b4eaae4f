"""The kernels, compiled for processors that need not be there, fit them.

A few of the combinations; ``python -m tests.kernels.compilation`` does any.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")
SHARED_MEMORY = importlib.import_module("tests.kernels.compilation").SHARED_MEMORY

# Bytes a thread: sums that stay with a thread while tiles pass, 58 registers in pair_adjoint, cost
# less in the L1 cache than added up over threads and in memory once a tile. How many there are
# depends on the compiler's version: of pair_adjoint 128 with Triton 3.8 and 152 with 3.6, of
# pair_statistics 88 and 160. What this forbids is spilling a whole tile.
MOST_SPILLS = 160
# The hidden layers' kernels trade some for larger tiles; those of the attention hold the most.
MOST_SPILLS_HIDDEN = {"gap": 128, "attention": 512}
HIDDEN_CASES = [  # architecture, (D, F, heads, H), precision
    (80, (512, 12, 1, 512), "bfloat16"),
    (80, (1024, 12, 1, 768), "tf32"),
    (90, (1024, 12, 1, 768), "bfloat16"),
    (100, (512, 12, 1, 512), "bfloat16"),
    (100, (512, 12, 1, 512), "tf32x3"),
]
# Exact products wait for shared memory, and a thread with more of a tile reads less of it.
MOST_EXACT_SPILLS = 384
# Of wide tiles, too: their Gram matrices are multiplied in parts, for whole they spill kilobytes.
MOST_SPILLS_ANYWHERE = 1024
# One of each class of sizes: columns of the basis and of the frames, padded; (D, F, heads).
SHAPES = [(256, 8, 1), (512, 12, 2), (512, 60, 1), (768, 32, 3), (512, 126, 1)]
PRECISIONS = ["bfloat16", "float32", "tf32", "tf32x3"]
# Every two of architecture, shape and precision meet, as far as there are cases.
CASES = [
    (architecture, SHAPES[(i + j) % len(SHAPES)], precision)
    for i, architecture in enumerate(SHARED_MEMORY)
    for j, precision in enumerate(PRECISIONS)
]
# What asks for most shared memory where there is least.
CASES += [(86, (512, 126, 1), "float64"), (80, (768, 32, 3), "float64")]
IN_EVERY_RUN = {(90, (256, 8, 1), "tf32"), (100, (512, 12, 1, 512), "bfloat16")}
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


def on_cases(cases: list[tuple[Any, ...]]) -> pytest.MarkDecorator:
    """Run a test on each case; on most of them only where slow tests run."""
    params = [
        pytest.param(*case, marks=() if case in IN_EVERY_RUN else pytest.mark.slow)
        for case in cases
    ]
    return pytest.mark.parametrize(("architecture", "shape", "precision"), params, ids=str)


@on_cases(CASES)
def test_fits(architecture: int, shape: tuple[int, ...], precision: str):
    pairs_alone = precision == "float64"
    kernels = {name for name in KERNELS if not pairs_alone or name.startswith(("pair", "row"))}
    reports = compiled(architecture, shape, precision, kernels)
    assert {report["kernel"] for report in reports} == kernels
    for report in reports:
        if precision != "float64":
            assert report["spills"] <= MOST_SPILLS_ANYWHERE, report
        if architecture >= 90 and shape[0] <= 512 and shape[1] * shape[2] <= 14:
            most = MOST_EXACT_SPILLS if precision == "float32" else MOST_SPILLS
            assert report["spills"] <= most, report


@on_cases(HIDDEN_CASES)
def test_hidden_layers_fit(architecture: int, shape: tuple[int, ...], precision: str):
    reports = compiled(architecture, shape, precision, HIDDEN_KERNELS)
    kernels = {(report["kernel"], report["layer"]) for report in reports}
    assert kernels == {(kernel, kind) for kernel in HIDDEN_KERNELS for kind in MOST_SPILLS_HIDDEN}
    for report in reports:
        if architecture >= 90 and shape[0] <= 512:
            assert report["spills"] <= MOST_SPILLS_HIDDEN[report["layer"]], report


@pytest.mark.slow
def test_absent_arguments_compile():
    """A branch that one of them decides is compiled with it or without."""
    reports = compiled(
        90, (64, 12, 1), "float32", {"pair_adjoint", "pair_statistics"}, "--variants"
    )
    assert len(reports) == 6


def compiled(
    architecture: int, shape: tuple[int, ...], precision: str, kernels: set[str], *options: str
) -> list[dict[str, Any]]:
    """What these kernels use; fails where a program has not so much shared memory."""
    # Where the kernels are interpreted nothing compiles: in a process of its own.
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.kernels.compilation"]
    command += ["--architectures", str(architecture), "--precisions", precision]
    command += ["--shapes", ",".join(map(str, shape)), "--kernels", *sorted(kernels), *options]
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
        assert report["shared"] <= SHARED_MEMORY[architecture] * 1024, report
    return reports
