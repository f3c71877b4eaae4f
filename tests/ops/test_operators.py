"""The native operators, each against its eager namesake."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import garevla
from garevla.increments.low_rank.factors import VideoFactors, text_factors
from garevla.ops.eager import pairs
from tests.helpers import operation as implementation
from tests.helpers import pair_factors, random_batch, random_psi, relative_error

pytestmark = pytest.mark.usefixtures("native")

OPERATIONS = [
    "pair_similarity",
    "pair_terms",
    "pair_statistics",
    "pair_statistics with samples",
    "direction",
]
SIZES = [  # texts, videos, frames, dim, heads
    (1, 1, 1, 8, 1),
    (1, 7, 5, 65, 1),
    (7, 3, 2, 30, 2),
    (8, 8, 5, 8, 8),
    (9, 2, 12, 512, 1),
    (15, 2, 5, 512, 4),
    (16, 1, 64, 8, 4),
    (17, 3, 12, 64, 8),
    (31, 2, 70, 30, 1),
    (33, 40, 1, 65, 1),
]
# Several chunks of videos, of several groups each.
SEVERAL_CHUNKS = (257, 250, 12, 8, 1)

Inputs = dict[str, Any]


@cache
def exact_inputs(size: tuple[int, ...]) -> Inputs:
    *shape, heads = size
    texts, videos = shape[:2]
    torch.manual_seed(0)
    with torch.no_grad():
        text_features, frames, mask = random_batch(*shape)
        text, video = pair_factors(
            text_features, frames, random_psi(shape[-1], heads).double(), mask
        )
        terms = pairs.pair_terms(text, video, 3.0)
    inputs: Inputs = {"text": text.features, "logit_scale": torch.tensor(5.0), **video._asdict()}
    inputs["unit"] = terms.coefficients / terms.increment_norm.unsqueeze(1)
    inputs["targets"] = torch.randint(videos, (texts,))
    inputs["samples"] = torch.stack([torch.randperm(videos)[:3] for _ in range(texts)])
    return inputs


def inputs_of(size: tuple[int, ...], dtype: torch.dtype = torch.float64) -> Inputs:
    """What the operations are given, as leaves; the same in every dtype, but for rounding."""
    inputs = exact_inputs(size)
    cast = {
        name: value.to(dtype, copy=True).requires_grad_() for name, value in leaves(inputs).items()
    }
    return inputs | cast


def outputs(operation: str, backend: str, inputs: Inputs) -> tuple[Tensor, ...]:
    """What an operation returns; its gradients flow into ``inputs``."""
    name, *with_samples = operation.split()
    function = implementation(name, backend)
    if name == "direction":
        # The mean inside the logarithm, which of one video is 0 up to rounding.
        return (function(inputs["unit"], inputs["basis"], 2.0).exp(),)
    video = VideoFactors(**{field: inputs[field] for field in VideoFactors._fields})
    arguments = [text_factors(inputs["text"]), video, 3.0]
    if name == "pair_similarity":
        return (function(*arguments),)
    if name == "pair_terms":
        return tuple(function(*arguments))
    samples = inputs["samples"] if with_samples else None
    found = function(*arguments, inputs["logit_scale"], inputs["targets"], samples)
    return tuple(tensor for tensor in found if tensor is not None)


def leaves(inputs: Inputs) -> dict[str, Tensor]:
    return {k: v for k, v in inputs.items() if isinstance(v, Tensor) and v.is_floating_point()}


def outcome(operation: str, backend: str, inputs: Inputs) -> list[dict[str, Tensor]]:
    """For each of an operation's outputs: itself, and the gradients of a weighted sum of it."""
    torch.manual_seed(1)
    found = []
    for value in outputs(operation, backend, inputs):
        weights = torch.randn(value.shape, dtype=torch.float64).to(value.dtype)
        named = leaves(inputs)
        gradients = torch.autograd.grad(
            value, list(named.values()), weights, retain_graph=True, allow_unused=True
        )
        # What an output does not depend on has the gradient None, or 0.
        gradients = dict(zip(named, gradients, strict=True))
        found.append({"value": value.detach()} | gradients)
    return found


def errors(found: dict[str, Tensor], exact: dict[str, Tensor]) -> dict[str, float]:
    """Relative errors of an output and its gradients.

    A gradient that is truly 0 (one frame: no attention moves) is measured by the largest, a value
    that is truly 0 (the covariance of one text) by itself.
    """
    present = {name: want for name, want in exact.items() if want is not None}
    gradients = [want for name, want in present.items() if name != "value"]
    largest = max((float(want.norm()) for want in gradients), default=0.0)
    result = {}
    for name, want in present.items():
        got = torch.zeros_like(want) if found[name] is None else found[name]
        scale = 1.0 if name == "value" else max(largest, 1e-300)
        if want.norm() <= 1e-12 * scale:
            result[name] = float(got.double().norm()) / scale
        else:
            result[name] = relative_error(got, want)
    return result


# Evaluations of the plain version, of inputs that differ by a rounding each.
NUM_ROUNDINGS = 4


def rounded(size: tuple[int, ...], draw: int) -> Inputs:
    """The inputs in float32, each number rounded up or down by chance; draw 0 to the nearest."""
    single = inputs_of(size, torch.float32)
    if draw == 0:
        return single
    generator = torch.Generator().manual_seed(draw)
    for name, exact in leaves(inputs_of(size)).items():
        away = torch.rand(exact.shape, generator=generator, dtype=torch.float64) - 0.5
        unit = torch.finfo(torch.float32).eps / 2
        single[name] = (exact.detach() * (1 + unit * away.sign())).float().requires_grad_()
    return single


def plain_errors(
    operation: str, size: tuple[int, ...], outcome: Callable[..., Any] = outcome
) -> list[dict[str, float]]:
    """For each output, the errors that eager makes in float32.

    One evaluation may be exact by luck, and where a result is ill-conditioned the luck decides: the
    largest of a few, of inputs rounded one way or the other, is what float32 lets one hope for.
    """
    exact = outcome(operation, "eager", inputs_of(size))
    drawn = [
        [
            errors(found, want)
            for found, want in zip(
                outcome(operation, "eager", rounded(size, draw)), exact, strict=True
            )
        ]
        for draw in range(NUM_ROUNDINGS)
    ]
    return [
        {name: max(of[name] for of in output) for name in output[0]}
        for output in zip(*drawn, strict=True)
    ]


def check(
    found: dict[str, Tensor],
    exact: dict[str, Tensor],
    plain: dict[str, float] | None = None,
    terms: int = 1,
) -> None:
    """Fail unless the errors are rounding.

    In float32 that is three times the plain version's, and the typical error of adding up as many
    terms as the longest sum has: √terms roundings.
    """
    for name, error in errors(found, exact).items():
        allowed = 1e-11
        if plain is not None:
            allowed = 3 * plain[name] + terms**0.5 * torch.finfo(torch.float32).eps / 2
        assert error <= allowed, (name, error, allowed)


def check_operation(operation: str, size: tuple[int, ...]) -> None:
    double, single = (inputs_of(size, dtype) for dtype in (torch.float64, torch.float32))
    exact = outcome(operation, "eager", double)
    for found, want in zip(outcome(operation, "native", double), exact, strict=True):
        check(found, want)
    actual, plain = outcome(operation, "native", single), plain_errors(operation, size)
    for found, want, of_plain in zip(actual, exact, plain, strict=True):
        assert found["value"].dtype == torch.float32
        check(found, want, of_plain, max(size))


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_agrees_with_eager(operation: str, size: tuple[int, ...]):
    check_operation(operation, size)


@pytest.mark.parametrize("factor", [0.0, -1.0, 2.0])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_wrong_gradient_is_noticed(operation: str, factor: float):
    size = (9, 4, 3, 16, 2)
    exact = outcome(operation, "eager", inputs_of(size))
    actual = outcome(operation, "native", inputs_of(size, torch.float32))
    for want, plain, found in zip(exact, plain_errors(operation, size), actual, strict=True):
        check(found, want, plain, max(size))
        for name, gradient in want.items():
            if gradient is not None and gradient.norm() > 0:
                with pytest.raises(AssertionError):
                    check(found | {name: factor * found[name]}, want, plain, max(size))


@pytest.mark.parametrize("operation", OPERATIONS)
def test_gradcheck(operation: str):
    inputs = inputs_of((3, 2, 2, 4, 2))
    names = leaves(inputs)
    if operation == "direction":
        names = {name: names[name] for name in ("unit", "basis")}

    def function(*values: Tensor) -> tuple[Tensor, ...]:
        given = inputs | dict(zip(names, values, strict=True))
        # Not of unit length the increments' cosines with themselves would leave their range.
        increments = torch.einsum("bka,bkd->bda", given["unit"], given["basis"])
        given["unit"] = given["unit"] / increments.norm(dim=1, keepdim=True)
        return outputs(operation, "native", given)

    assert torch.autograd.gradcheck(function, tuple(names.values()))


def operator_arguments(inputs: Inputs) -> tuple[Any, ...]:
    video = VideoFactors(**{field: inputs[field] for field in VideoFactors._fields})
    return inputs["text"], video.operator_arguments(), 3.0, list(video.layer_norm_eps)


def operator_calls(inputs: Inputs) -> dict[str, tuple[Any, ...]]:
    """Arguments for every operator of the library."""
    pair = operator_arguments(inputs)
    statistics = (*pair, inputs["logit_scale"], inputs["targets"])
    # The gradients' operators have none of their own.
    constant = operator_arguments(
        {k: v.detach() if isinstance(v, Tensor) else v for k, v in inputs.items()}
    )
    given = (*constant, inputs["logit_scale"].detach(), inputs["targets"])
    calls = {
        "pair_similarity": pair,
        "pair_terms": pair,
        "pair_statistics": (*statistics, None),
        "pair_statistics with samples": (*statistics, inputs["samples"]),
        "direction": (inputs["unit"].detach(), inputs["basis"].detach(), 2.0, False),
        "direction with gradient": (inputs["unit"], inputs["basis"], 2.0, True),
    }
    similarity, coefficients, norm = torch.ops.garevla.pair_terms(*constant)
    calls["pair_terms_backward"] = (*constant, similarity, coefficients, norm)
    calls["pair_terms_backward of similarity"] = (*constant, similarity, None, None)
    for name, samples in (("", None), (" with samples", inputs["samples"])):
        row, column, target, norm_mean, variance, mean, covariance, sampled = (
            torch.ops.garevla.pair_statistics(*given, samples)
        )
        calls["pair_statistics_backward" + name] = (
            *(*given, samples, row, column, norm_mean, mean),
            [row, column, target, variance, mean, covariance],
            None if samples is None else sampled,
        )
    return calls


CALLS = [
    *OPERATIONS,
    "direction with gradient",
    "pair_terms_backward",
    "pair_terms_backward of similarity",
    "pair_statistics_backward",
    "pair_statistics_backward with samples",
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("call", CALLS)
def test_opcheck(call: str, dtype: torch.dtype):
    arguments = operator_calls(inputs_of((5, 4, 3, 8, 2), dtype))[call]
    torch.library.opcheck(getattr(torch.ops.garevla, call.split()[0]).default, arguments)


def test_every_operator_is_checked():
    registered = {
        schema.name.removeprefix("garevla::")
        for schema in torch._C._jit_get_all_schemas()
        if schema.name.startswith("garevla::")
    }
    assert registered == {call.split()[0] for call in CALLS}


FACTORS = [name for name in VideoFactors._fields if name not in ("basis", "layer_norm_eps")]


@pytest.mark.parametrize("name", FACTORS)
def test_factors_that_do_not_fit_are_named(name: str):
    inputs = inputs_of((3, 4, 2, 8, 2))
    whole = inputs[name]
    # key_bias says how many heads and frames there are: if it is wrong, the next one does not fit.
    named = "rows" if name == "key_bias" else name
    for wrong, error, match in (
        (whole[:, :-1], ValueError, f"{named} must have shape"),
        (whole.float(), TypeError, f"{name} must be"),
    ):
        for operation in ("pair_terms", "pair_statistics"):
            with pytest.raises(error, match=match):
                outputs(operation, "native", inputs | {name: wrong})


@pytest.mark.parametrize("operation", OPERATIONS)
def test_devices_must_be_one(operation: str):
    inputs = inputs_of((3, 4, 2, 8, 2))
    for name in ("rows", "basis"):
        inputs[name] = inputs[name].to("meta")
    with pytest.raises((ValueError, RuntimeError), match=r"device|on meta"):
        outputs(operation, "native", inputs)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"targets": torch.tensor([0, 1])}, "targets must have shape"),
        ({"targets": torch.tensor([0, 1, 4])}, "video index 4 is not in"),
        ({"targets": torch.tensor([0, 1, -1])}, "video index -1 is not in"),
        ({"targets": torch.tensor([0, 1, 2], dtype=torch.int32)}, "targets must be Long, got Int"),
        ({"samples": torch.tensor([[0, 1], [0, 1], [0, 4]])}, "video index 4 is not in"),
        ({"samples": torch.tensor([[0, 1], [0, 1]])}, "samples must have shape"),
        ({"samples": torch.tensor([0, 1, 1])}, "samples must have shape"),
        ({"logit_scale": torch.ones(2)}, "logit_scale|cannot be converted to Scalar"),
        ({"text": torch.ones(3, 8, dtype=torch.float16)}, "must be|not implemented"),
    ],
    ids=str,
)
def test_statistics_of_wrong_arguments(changed: Inputs, message: str):
    inputs = inputs_of((3, 4, 2, 8, 2)) | changed
    with pytest.raises((ValueError, TypeError, IndexError, RuntimeError), match=message):
        outputs("pair_statistics with samples", "native", inputs)


def test_direction_of_wrong_arguments():
    unit, basis = torch.ones(3, 4, 2), torch.ones(3, 4, 8)
    run = torch.ops.garevla.direction
    for wrong in (basis[:2], basis[:, :3], basis[0]):
        with pytest.raises(ValueError, match="must have shape"):
            run(unit, wrong, 2.0, True)
    with pytest.raises(TypeError, match="basis must be"):
        run(unit, basis.double(), 2.0, True)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_non_contiguous_inputs(operation: str):
    inputs = inputs_of((9, 4, 3, 16, 2), torch.float32)
    strided = dict(inputs)
    for name, value in inputs.items():
        if isinstance(value, Tensor) and value.dim():
            strided[name] = torch.stack([value, value], dim=-1)[..., 0]
            assert not strided[name].is_contiguous()
    for got, want in zip(
        outputs(operation, "native", strided), outputs(operation, "native", inputs), strict=True
    ):
        assert torch.equal(got, want)
        # The gradient of a sum is one number, expanded.
        name = "basis" if operation == "direction" else "rows"
        expanded = torch.autograd.grad(got.sum(), inputs[name], retain_graph=True)
        plain = torch.autograd.grad(want, inputs[name], torch.ones_like(want), retain_graph=True)
        assert torch.equal(expanded[0], plain[0])


def bits(operation: str, inputs: Inputs) -> list[Tensor]:
    """All outputs, and the gradients of their weighted sum."""
    torch.manual_seed(1)
    found = outputs(operation, "native", inputs)
    total = sum((torch.randn_like(value) * value).sum() for value in found)
    gradients = torch.autograd.grad(total, list(leaves(inputs).values()), allow_unused=True)
    return [*found, *(gradient for gradient in gradients if gradient is not None)]


@pytest.mark.parametrize("threads", [(2, 2), (1, 2)], ids=str)
@pytest.mark.parametrize("size", [SEVERAL_CHUNKS, (70, 5, 12, 512, 8), (5, 70, 1, 8, 1)], ids=str)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_bits_repeat(operation: str, size: tuple[int, ...], threads: tuple[int, int]):
    if operation == "direction" and size is SEVERAL_CHUNKS:
        size = (65, 200, 2, 512, 1)
    inputs, before, results = inputs_of(size, torch.float32), torch.get_num_threads(), []
    try:
        for number in threads:
            torch.set_num_threads(number)
            results.append(bits(operation, inputs))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


INSTRUCTION_SETS = {
    "baseline": ["DEFAULT", "AVX2", "AVX512"],
    "avx2": ["AVX2", "AVX512"],
    "avx512": ["AVX512"],
}


@pytest.fixture(scope="module")
def digests() -> dict[str, str]:
    return {}


@pytest.mark.parametrize("capability", INSTRUCTION_SETS)
def test_instruction_sets(capability: str, digests: dict[str, str]):
    if torch.backends.cpu.get_cpu_capability() not in INSTRUCTION_SETS[capability]:
        pytest.skip(f"this processor has no {capability}")
    code = (
        "import torch\n"
        "from tests.ops.test_operators import *\n"
        "for operation in OPERATIONS[1:]:\n"
        "    check_operation(operation, (17, 6, 5, 30, 2))\n"
        "found = bits('pair_statistics', inputs_of((33, 6, 5, 30, 2), torch.float32))\n"
        "print(hash(b''.join(tensor.detach().numpy().tobytes() for tensor in found)))\n"
    )
    environment = os.environ | {"GAREVLA_CPU_CAPABILITY": capability, "PYTHONHASHSEED": "0"}
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[2],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    # Sums in another order: had the variable no effect, the bits would be the same.
    assert result.stdout not in digests.values()
    digests[capability] = result.stdout


LOSSES = {
    "streaming": {"lambda_direction": 0.0},
    "samples": {"direction_samples": 3, "lambda_direction": 0.1},
    "exact": {"lambda_direction": 0.1},
}


@pytest.mark.parametrize("name", ["similarity", *LOSSES])
def test_compiled(name: str):
    psi = random_psi(16, 2)
    text, frames, mask = random_batch(6, 6, 4, 16, torch.float32)
    scale = torch.tensor(20.0, requires_grad=True)
    if name == "similarity":

        def function(text: Tensor, frames: Tensor, scale: Tensor) -> Tensor:
            return (scale * garevla.gare_similarity(text, frames, psi, mask)).square().sum()
    else:
        loss = garevla.GareLoss(psi, **LOSSES[name])

        def function(text: Tensor, frames: Tensor, scale: Tensor) -> Tensor:
            return loss(text, frames, scale, mask).loss

    inputs = [text, frames, scale, psi.mean_proj.weight]
    results = []
    for run in (function, torch.compile(function, fullgraph=True, backend="aot_eager")):
        torch.manual_seed(3)
        value = run(text, frames, scale)
        results.append([value, *torch.autograd.grad(value, inputs)])
    for compiled, plain in zip(results[1], results[0], strict=True):
        assert relative_error(compiled, plain) < 1e-6
