"""The compiled backends on a GPU, held to the eager definition in float64 on the CPU."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import garevla
from garevla.kernels.backend import LARGEST_ATTENTION
from tests.helpers import random_batch, random_psi, relative_error
from tests.ops.test_operators import (
    OPERATIONS,
    SIZES,
    Inputs,
    check,
    inputs_of,
    outcome,
)

pytestmark = pytest.mark.gpu

CUDA = torch.device("cuda")
LOSSES = {
    "streaming": {"lambda_direction": 0.0},
    "sampled": {"direction_samples": 4},
    "exact": {},
}


@pytest.fixture(params=["native", "triton"])
def compiled(request: pytest.FixtureRequest) -> str:
    """The name of a backend that has kernels here."""
    if (reason := garevla.backend_status(CUDA)[request.param]) is not None:
        pytest.skip(reason)
    return request.param


def on_gpu(inputs: Inputs) -> Inputs:
    return {
        name: value.detach().to(CUDA).requires_grad_(value.requires_grad)
        if isinstance(value, Tensor)
        else value
        for name, value in inputs.items()
    }


def gpu_outcome(operation: str, backend: str, inputs: Inputs) -> list[dict[str, Tensor]]:
    found = outcome(operation, backend, on_gpu(inputs))
    return [
        {name: value if value is None else value.cpu() for name, value in one.items()}
        for one in found
    ]


@pytest.fixture(params=["many programs", "one program"])
def programs(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton's programs have one tile each, or walk through all of a video's."""
    if request.param == "one program":
        pytest.importorskip("triton")
        monkeypatch.setattr("garevla.kernels.configs.PAIR_PROGRAMS", 1)


@pytest.mark.usefixtures("programs")
@pytest.mark.parametrize("size", [*SIZES, (130, 71, 12, 512, 1), (300, 5, 12, 64, 1)], ids=str)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_agrees_with_eager(compiled: str, operation: str, size: tuple[int, ...]):
    attention = size[2] * size[4]
    if compiled == "triton" and operation != "direction" and attention > LARGEST_ATTENTION:
        pytest.skip("too many heads and frames for the triton backend")
    double, single = (inputs_of(size, dtype) for dtype in (torch.float64, torch.float32))
    exact = outcome(operation, "eager", double)
    for found, want in zip(gpu_outcome(operation, compiled, double), exact, strict=True):
        check(found, want)
    plain = outcome(operation, "eager", single)
    actual = gpu_outcome(operation, compiled, single)
    for found, want, same_dtype in zip(actual, exact, plain, strict=True):
        check(found, want, same_dtype)


# Relative errors allowed to presets that round operands: some units of their last place.
ROUNDED = {"tf32x3": 5e-6, "tf32": 1e-2, "bfloat16": 6e-2}


@pytest.mark.usefixtures("programs")
@pytest.mark.parametrize("size", [(300, 71, 12, 512, 1), (65, 9, 64, 256, 1)], ids=str)
@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("precision", ROUNDED)
def test_precisions(compiled: str, precision: str, operation: str, size: tuple[int, ...]):
    exact = outcome(operation, "eager", inputs_of(size))
    with garevla.use_precision(precision):
        found = gpu_outcome(operation, compiled, inputs_of(size, torch.float32))
    for got, want in zip(found, exact, strict=True):
        assert relative_error(got["value"], want["value"]) < ROUNDED[precision]
    for name, want in exact[0].items():
        if want is not None and name != "value" and want.norm() > 0:
            assert relative_error(found[0][name], want) < 10 * ROUNDED[precision], name


@pytest.mark.usefixtures("programs")
@pytest.mark.parametrize("operation", OPERATIONS)
def test_bits_repeat(compiled: str, operation: str):
    inputs = inputs_of((300, 70, 12, 64, 1), torch.float32)
    first, second = (gpu_outcome(operation, compiled, inputs) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        for name, value in one.items():
            assert value is None or torch.equal(value, other[name]), name


def step(
    backend: str,
    arguments: dict[str, float],
    batch: int = 40,
    frames: int = 12,
    dim: int = 64,
    compile_it: bool = False,
) -> tuple[Callable[[], Tensor], list[Tensor]]:
    """One forward and backward pass of the loss on the GPU, and the features it is of."""
    torch.manual_seed(0)
    psi = random_psi(dim).to(CUDA)
    text, video, _ = random_batch(batch, batch, frames, dim, torch.float32)
    leaves = [text.detach().to(CUDA), video.detach().to(CUDA)]
    for leaf in leaves:
        leaf.requires_grad_()
    loss = garevla.GareLoss(psi, backend=backend, **arguments)
    scale = torch.tensor(20.0, device=CUDA)

    def forward(text: Tensor, video: Tensor) -> Tensor:
        return loss(text, video, scale).loss

    if compile_it:
        forward = torch.compile(forward, fullgraph=True, backend="aot_eager")

    def run() -> Tensor:
        value = forward(*leaves)
        value.backward()
        return value.detach()

    return run, leaves


@pytest.mark.parametrize("arguments", LOSSES.values(), ids=LOSSES)
def test_the_host_never_waits(compiled: str, arguments: dict[str, float]):
    run, _ = step(compiled, arguments)
    run()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        run()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_current_stream_is_used(compiled: str):
    run, leaves = step(compiled, LOSSES["streaming"])
    expected = run()
    gradients = [leaf.grad.clone() for leaf in leaves]
    for leaf in leaves:
        leaf.grad = None
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(10**8)  # whatever ran on another stream would be done before
        value = run()
    stream.synchronize()
    assert torch.equal(value, expected)
    for leaf, gradient in zip(leaves, gradients, strict=True):
        assert torch.equal(leaf.grad, gradient)


# Not the sampled loss: each replay draws anew.
@pytest.mark.parametrize("loss", ["streaming", "exact"])
def test_graph_capture(compiled: str, loss: str):
    run, leaves = step(compiled, LOSSES[loss])
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(side)
    for leaf in leaves:
        leaf.grad = None
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run()
    with torch.no_grad():
        leaves[0].copy_(torch.randn_like(leaves[0]))
    graph.replay()
    replayed = captured.clone()
    gradients = [leaf.grad.clone() for leaf in leaves]
    for leaf in leaves:
        leaf.grad = None
    assert torch.equal(run(), replayed)
    for leaf, gradient in zip(leaves, gradients, strict=True):
        assert torch.equal(leaf.grad, gradient)


def test_memory_of_streaming_grows_with_the_batch_not_its_square(compiled: str):
    def growth(batch: int) -> int:
        run, _ = step(compiled, LOSSES["streaming"], batch, frames=2, dim=16)
        run()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before

    # Chunks are of fixed size, and dominate; A × B numbers would be 1 GiB in the larger batch.
    assert growth(16384) < growth(4096) + 2**28


@pytest.mark.parametrize("arguments", LOSSES.values(), ids=LOSSES)
def test_torch_compile(compiled: str, arguments: dict[str, float]):
    def outcome(compile_it: bool) -> list[Tensor]:
        run, leaves = step(compiled, arguments, compile_it=compile_it)
        torch.manual_seed(1)
        return [run(), *(leaf.grad for leaf in leaves)]

    for got, want in zip(outcome(True), outcome(False), strict=True):
        assert relative_error(got.cpu(), want.cpu()) < 1e-5


def test_index_out_of_range_is_noticed(compiled: str):
    # A device-side assertion ends the process's context: in a process of its own.
    code = (
        "import torch, garevla\n"
        "psi = garevla.CrossAttentionPsi(16).cuda()\n"
        f"loss = garevla.GareLoss(psi, backend={compiled!r}, lambda_direction=0.0)\n"
        "text, video = torch.randn(4, 16).cuda(), torch.randn(4, 3, 16).cuda()\n"
        "loss(text, video, 20.0, targets=torch.tensor([0, 1, 2, 4]).cuda())\n"
        "torch.cuda.synchronize()\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert result.returncode != 0
    assert "device-side assert" in result.stderr
