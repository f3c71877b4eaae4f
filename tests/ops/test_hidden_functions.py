"""The compiled elementwise parts of a hidden layer's tiles against the eager ones."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from garevla.ops.eager.hidden import EagerFunctions
from garevla.ops.hidden.factors import ACTIVATIONS, HiddenLayer
from garevla.ops.hidden.tiles import Dropout, HiddenFunctions, MomentsGradient, Tile
from garevla.ops.native_hidden import NativeFunctions
from garevla.ops.native_library import UNAVAILABLE
from tests.helpers import relative_error
from tests.ops.test_native import INSTRUCTION_SETS

pytestmark = pytest.mark.skipif(UNAVAILABLE is not None, reason=str(UNAVAILABLE))

Size = tuple[int, int, int]  # videos, texts, hidden units or features
SIZES: list[Size] = [(1, 1, 1), (3, 17, 7), (17, 3, 65), (17, 70, 130), (1, 3, 64), (3, 1, 130)]
MASKS = {"whole": None, "dropout": Dropout(0.3, 2**40 + 12345, 1000, 2**31 + 5)}
Outputs = list[Tensor]


def inputs_of(kind: str, size: Size, activation: str, mask: str) -> tuple[Tile, list[Tensor]]:
    """A tile in float64, and what else the functions of its kind take."""
    torch.manual_seed(0)
    videos, texts, dim = size

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64)

    pairs, grad = random(videos, texts), random(videos, texts, dim)
    if kind == "gap":
        layer = HiddenLayer("gap", activation, (1e-5,), 0.3)
        # A number by itself stays out of the tail, where nothing is left of 1 + erf.
        spread = 2.0 if dim > 1 else 0.2
        factors = {
            "video_hidden": spread * random(videos, dim),
            "text_hidden": spread * random(texts, dim),
            "shift": random(dim),
        }
        return Tile(layer, factors, pairs.abs(), MASKS[mask]), [grad]
    layer = HiddenLayer("attention", "", (1e-5, 1e-5, 1e-3), 0.3)
    tile = Tile(layer, {"shift": random(2 * dim)}, pairs, MASKS[mask])
    return tile, [grad, random(videos, texts, 2 * dim)]


def convert(value: Any, dtype: torch.dtype) -> Any:
    """With every tensor inside in another dtype; tensors are copied."""
    if isinstance(value, Tensor):
        return value.to(dtype, copy=True)
    if isinstance(value, dict):
        return {name: convert(tensor, dtype) for name, tensor in value.items()}
    if isinstance(value, Tile):
        factors, coefficients = convert(value.factors, dtype), convert(value.coefficients, dtype)
        return Tile(value.layer, factors, coefficients, value.dropout)
    if isinstance(value, list):
        return [convert(tensor, dtype) for tensor in value]
    return value


def gap(functions: HiddenFunctions, tile: Tile, rest: list[Tensor]) -> Outputs:
    hidden = torch.full_like(rest[0], torch.nan)
    functions.gap_hidden(tile, hidden)
    return [hidden, *functions.gap_hidden_backward(tile, rest[0])]


def attention(functions: HiddenFunctions, tile: Tile, rest: list[Tensor]) -> Outputs:
    grad, mixed = rest
    hidden, grad_mixed = torch.full_like(grad, torch.nan), torch.full_like(mixed, torch.nan)
    inverse = functions.attention_hidden(tile, mixed, hidden)
    shift = functions.attention_hidden_backward(tile, grad, hidden, inverse, grad_mixed)
    return [hidden, inverse, grad_mixed, shift]


def increments(functions: HiddenFunctions, tensors: list[Tensor]) -> Outputs:
    given, text, *rest = tensors
    (text_product, norm), (shift, slope, center), (whole, alone) = rest[:2], rest[2:5], rest[5:]
    *products, moments = functions.contract(given, text, True)
    assert functions.contract(given, text, False)[2] is None
    moments_gradient = MomentsGradient(shift, slope, center)
    found = [*products, *moments]
    for gradient, out in ((moments_gradient, whole), (None, alone)):
        grads = functions.increment_gradient(given, text, text_product, norm, gradient, out)
        found += [out, *grads]
    return found


def directions(functions: HiddenFunctions, tensors: list[Tensor]) -> Outputs:
    given, grad_output = tensors
    norm = given.norm(dim=2)
    return [
        functions.diversity(given, norm, 2.0),
        functions.diversity_gradient(given, norm, 2.0, grad_output),
    ]


def increments_of(size: Size) -> list[Tensor]:
    torch.manual_seed(0)
    videos, texts, dim = size
    whole, by_text, by_video, by_pair = size, (texts, dim), (videos, dim), (videos, texts)
    # Far from 0 as their deviations go, so that sums of squares would cancel.
    given = torch.randn(whole, dtype=torch.float64) + 20 * torch.randn(dim, dtype=torch.float64)
    shapes = (by_text, by_pair, by_pair, by_video, by_video, by_video, whole, whole)
    return [given, *(torch.randn(shape, dtype=torch.float64) for shape in shapes)]


def check(run: Callable[..., Outputs], *arguments: Any) -> None:
    """float64 to rounding; float32 within 3 times the eager functions' error and a rounding's."""
    exact = run(EagerFunctions(), *convert(list(arguments), torch.float64))
    found = run(NativeFunctions(), *convert(list(arguments), torch.float64))
    for number, (actual, expected) in enumerate(zip(found, exact, strict=True)):
        assert relative_error(actual, expected) < 1e-12, number
    plain = run(EagerFunctions(), *convert(list(arguments), torch.float32))
    found = run(NativeFunctions(), *convert(list(arguments), torch.float32))
    for number, (actual, eager, expected) in enumerate(zip(found, plain, exact, strict=True)):
        assert actual.dtype == torch.float32
        bound = 3 * relative_error(eager, expected) + 3e-7
        assert relative_error(actual, expected) < bound, number


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_gap(size: Size, activation: str, mask: str):
    check(gap, *inputs_of("gap", size, activation, mask))


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("size", [size for size in SIZES if size[2] > 1], ids=str)
def test_attention(size: Size, mask: str):
    check(attention, *inputs_of("attention", size, "", mask))


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_increments(size: Size):
    check(increments, increments_of(size))


@pytest.mark.parametrize("size", [(2, 1, 7), (3, 17, 7), (17, 3, 65), (150, 3, 130)], ids=str)
def test_diversity(size: Size):
    torch.manual_seed(0)
    given = torch.randn(size, dtype=torch.float64)
    check(directions, [given, torch.tensor(0.7, dtype=torch.float64)])


def test_masks_are_the_same_bits():
    tile, _ = inputs_of("gap", (3, 5, 130), "relu", "dropout")
    tile.factors["video_hidden"].zero_()
    tile.factors["text_hidden"].zero_()
    tile.factors["shift"].fill_(1)
    kept = []
    for functions in (EagerFunctions(), NativeFunctions()):
        functions.gap_hidden(tile, out := torch.empty(3, 5, 130, dtype=torch.float64))
        kept.append(out)
    assert torch.equal(*kept)
    assert 0.6 < float((kept[0] > 0).double().mean()) < 0.8


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_tails(activation: str):
    """Where exponentials overflow, and NaN."""
    tile, _ = inputs_of("gap", (1, 1, 8), activation, "whole")
    points = torch.tensor([-1e11, -1e4, -30, 0, 30, 1e4, 1e11])
    zeros = torch.zeros(1, len(points))
    factors = {"video_hidden": zeros, "text_hidden": zeros, "shift": points}
    tile = Tile(tile.layer, factors, torch.ones(1, 1), None)
    found, expected = (
        [out, *functions.gap_hidden_backward(tile, torch.ones_like(out))]
        for functions in (NativeFunctions(), EagerFunctions())
        for out in [torch.empty(1, 1, len(points))]
        if functions.gap_hidden(tile, out) is None
    )
    for actual, want in zip(found, expected, strict=True):
        torch.testing.assert_close(actual, want, atol=1e-7, rtol=1e-6)
    factors["shift"] = torch.full_like(points, torch.nan)
    NativeFunctions().gap_hidden(tile, out := torch.zeros(1, 1, len(points)))
    assert out.isnan().all()


def everything(size: Size, dtype: torch.dtype) -> Outputs:
    functions, found = NativeFunctions(), []
    for activation, mask in itertools.product(ACTIVATIONS, MASKS):
        found += gap(functions, *convert(list(inputs_of("gap", size, activation, mask)), dtype))
    for mask in MASKS:
        found += attention(functions, *convert(list(inputs_of("attention", size, "", mask)), dtype))
    given = increments_of(size)
    found += increments(functions, convert(given, dtype))
    return found + directions(functions, convert([given[0], torch.ones(())], dtype))


@pytest.mark.parametrize("threads", [(2, 2), (1, 2)], ids=str)
@pytest.mark.parametrize("size", [(17, 70, 130), (70, 17, 65), (1, 257, 33)], ids=str)
def test_bits_repeat_with_threads(size: Size, threads: tuple[int, int]):
    before, found = torch.get_num_threads(), []
    try:
        for number in threads:
            torch.set_num_threads(number)
            found.append(everything(size, torch.float32))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


CHECK = """
import torch
from tests.ops.test_hidden_functions import *
for size in SIZES[1:4]:
    for activation in ACTIVATIONS:
        check(gap, *inputs_of("gap", size, activation, "dropout"))
    check(attention, *inputs_of("attention", size, "", "dropout"))
    check(increments, increments_of(size))
found = everything((17, 70, 130), torch.float32)
print(hash(b"".join(tensor.numpy().tobytes() for tensor in found)))
"""


@pytest.fixture(scope="module")
def digests() -> dict[str, str]:
    return {}


@pytest.mark.parametrize("capability", INSTRUCTION_SETS)
def test_instruction_sets(capability: str, digests: dict[str, str]):
    if torch.backends.cpu.get_cpu_capability() not in INSTRUCTION_SETS[capability]:
        pytest.skip(f"this processor has no {capability}")
    result = subprocess.run(
        [sys.executable, "-c", CHECK],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"GAREVLA_CPU_CAPABILITY": capability, "PYTHONHASHSEED": "0"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    # Sums in another order: had the variable no effect, the bits would be the same.
    assert result.stdout not in digests.values()
    digests[capability] = result.stdout


def test_wrong_arguments():
    tile, (grad,) = inputs_of("gap", (3, 4, 8), "gelu", "whole")
    functions, factors = NativeFunctions(), tile.factors
    with pytest.raises((ValueError, RuntimeError), match="shift must have shape"):
        functions.gap_hidden(
            Tile(tile.layer, factors | {"shift": grad}, tile.coefficients, None), grad
        )
    with pytest.raises((ValueError, RuntimeError), match="contiguous"):
        functions.gap_hidden(tile, grad.mT.contiguous().mT)
    with pytest.raises((ValueError, RuntimeError), match="text must be float64, got float32"):
        functions.contract(grad, factors["text_hidden"].float(), True)
    layer = HiddenLayer("gap", "elu", (1e-5,))
    with pytest.raises((ValueError, RuntimeError), match="no activation elu"):
        functions.gap_hidden(Tile(layer, factors, tile.coefficients, None), grad)
