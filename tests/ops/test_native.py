"""What the native backend alone has: threads, instruction sets, indices checked on a CPU."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.conformance.agreement import check_gradients
from tests.conformance.operations import OPERATIONS, Inputs, Size, inputs_of, outputs, results
from tests.conformance.targets import Target

NATIVE = Target("native", "cpu")
LABELS = [label for label in OPERATIONS if NATIVE.owns(label)]


@pytest.fixture(autouse=True)
def _native() -> None:
    NATIVE.require()


# Several chunks of videos, of several groups each; wide factors; few texts.
PAIR_SIZES = [(257, 250, 12, 8, 1), (70, 5, 12, 512, 8), (5, 70, 1, 8, 1)]
DIRECTION_SIZES = [(65, 200, 4, 512), (70, 5, 98, 512), (5, 70, 3, 8)]
# Several tiles; wide hidden vectors.
HIDDEN_SIZES = [(257, 40, 3, 24, 40, 1), (70, 5, 12, 512, 512, 1), (5, 70, 1, 8, 7, 1)]
SIZES = {"pair": PAIR_SIZES, "direction": DIRECTION_SIZES, "hidden": HIDDEN_SIZES}
SIZED = [(label, size) for label in LABELS for size in SIZES[re.split("[_ ]", label)[0]]]


@pytest.mark.parametrize("threads", [(2, 2), (1, 2)], ids=str)
@pytest.mark.parametrize(("operation", "size"), SIZED, ids=str)
def test_bits_repeat_with_threads(operation: str, size: Size, threads: tuple[int, int]):
    if operation.startswith("hidden") and threads == (1, 2):
        pytest.skip("PyTorch's products, whose last bits depend on the number of threads")
    inputs, before, found = inputs_of(operation, size, torch.float32), torch.get_num_threads(), []
    try:
        for number in threads:
            torch.set_num_threads(number)
            found.append(results(operation, "native", inputs))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


INSTRUCTION_SETS = {
    "baseline": ["DEFAULT", "AVX2", "AVX512"],
    "avx2": ["AVX2", "AVX512"],
    "avx512": ["AVX512"],
}
CHECK = """
import re
import torch
from tests.conformance.agreement import check_agreement
from tests.conformance.operations import inputs_of, results
from tests.ops.test_native import LABELS, NATIVE
for operation in LABELS[1:]:
    sizes = {"direction": (17, 6, 7, 30), "hidden": (17, 6, 5, 30, 20, 2)}
    kind = re.split("[_ ]", operation)[0]
    check_agreement(NATIVE, operation, sizes.get(kind, (17, 6, 5, 30, 2)))
inputs = inputs_of("pair_statistics", (33, 6, 5, 30, 2), torch.float32)
found = results("pair_statistics", "native", inputs)
print(hash(b"".join(tensor.detach().numpy().tobytes() for tensor in found)))
"""


@pytest.fixture(scope="module")
def digests() -> dict[str, str]:
    return {}


@pytest.mark.parametrize("capability", INSTRUCTION_SETS)
def test_instruction_sets(capability: str, digests: dict[str, str]):
    if torch.backends.cpu.get_cpu_capability() not in INSTRUCTION_SETS[capability]:
        pytest.skip(f"this processor has no {capability}")
    environment = os.environ | {"GAREVLA_CPU_CAPABILITY": capability, "PYTHONHASHSEED": "0"}
    result = subprocess.run(
        [sys.executable, "-c", CHECK],
        cwd=Path(__file__).parents[2],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    # Sums in another order: had the variable no effect, the bits would be the same.
    assert result.stdout not in digests.values()
    digests[capability] = result.stdout


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"targets": torch.tensor([0, 1, 4])}, "video index 4 is not in"),
        ({"targets": torch.tensor([0, 1, -1])}, "video index -1 is not in"),
        ({"samples": torch.tensor([[0, 1], [0, 1], [0, 4]])}, "video index 4 is not in"),
    ],
    ids=str,
)
def test_indices_out_of_range_are_named(changed: Inputs, message: str):
    operation = "pair_statistics with samples"
    inputs = inputs_of(operation, (3, 4, 2, 8, 2)) | changed
    with pytest.raises(RuntimeError, match=message):
        outputs(operation, "native", inputs)


@pytest.mark.parametrize("operation", [label for label in LABELS if label.startswith("pair")])
def test_gradcheck_of_factors_that_move_apart(operation: str):
    """Every factor by itself, the mean frame too, as in eager."""
    check_gradients(NATIVE, operation, lambda inputs: inputs)


def test_direction_of_wrong_arguments():
    unit, basis = torch.ones(3, 4, 2), torch.ones(3, 4, 8)
    run = torch.ops.garevla.direction
    for wrong in (basis[:2], basis[:, :3], basis[0]):
        with pytest.raises(RuntimeError, match="must have shape"):
            run(unit, wrong, 2.0, True)
    with pytest.raises(RuntimeError, match="basis must be float32, got float64"):
        run(unit, basis.double(), 2.0, True)


TWICE = """
import shutil, sys
import torch
from garevla.ops import native_library
torch.ops.load_library(shutil.copy(native_library.LIBRARY, sys.argv[1]))
try:
    torch.ops.garevla.direction(torch.ones(3, 4, 2), torch.ones(3, 4), 2.0, True)
except RuntimeError as error:
    print(error)
"""


def test_what_goes_wrong_while_it_is_loaded_is_printed(tmp_path: Path):
    """Such as another copy, whose operators are there already."""
    result = subprocess.run(
        [sys.executable, "-c", TWICE, tmp_path],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert re.search(r"^garevla: aoti_torch_library_init_def failed", result.stderr, re.M)
    assert "must have shape" in result.stdout
