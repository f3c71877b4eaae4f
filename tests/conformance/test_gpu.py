"""What there is on a GPU alone: precision presets, streams, graphs, memory, the host's waiting."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import garevla
from tests.conformance.error_model import expected, outcome
from tests.conformance.operations import OPERATIONS, inputs_of
from tests.conformance.targets import GPU_TARGETS, Target, on_operations, on_targets
from tests.helpers import random_batch, random_psi, relative_error

pytestmark = pytest.mark.gpu

CUDA = torch.device("cuda")
LOSSES = {
    "streaming": {"lambda_direction": 0.0},
    "sampled": {"direction_samples": 4},
    "exact": {},
}


# Relative errors allowed to presets that round operands: some units of their last place.
ROUNDED = {"tf32x3": 5e-6, "tf32": 1e-2, "bfloat16": 6e-2}
SIZES = {
    "pair": [(300, 71, 12, 512, 1), (65, 9, 64, 256, 1)],
    "direction": [(300, 71, 14, 512), (65, 9, 66, 256)],
    "hidden": [(65, 9, 12, 256, 128, 1), (30, 5, 24, 64, 48, 1)],
}


@pytest.mark.parametrize("number", range(2))
@pytest.mark.parametrize("precision", ROUNDED)
@on_operations(GPU_TARGETS, [label for label in OPERATIONS if "frame" not in label])
def test_precisions(target: Target, operation: str, precision: str, number: int):
    size = SIZES[operation.partition("_")[0]][number]
    exact = expected(operation, size)
    inputs = inputs_of(operation, size, torch.float32, target.device)
    with garevla.use_precision(precision):
        found = outcome(operation, target.backend, inputs)
    for got, want in zip(found, exact, strict=True):
        assert relative_error(got["value"], want["value"]) < ROUNDED[precision]
    for name, want in exact[0].items():
        if want is not None and name != "value" and want.norm() > 0:
            assert relative_error(found[0][name], want) < 10 * ROUNDED[precision], name


def step(
    backend: str,
    arguments: dict[str, float],
    batch: int = 40,
    frames: int = 12,
    dim: int = 64,
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

    def run() -> Tensor:
        value = loss(*leaves, scale).loss
        value.backward()
        return value.detach()

    return run, leaves


@pytest.mark.parametrize("arguments", LOSSES.values(), ids=LOSSES)
@on_targets(GPU_TARGETS)
def test_the_host_never_waits(target: Target, arguments: dict[str, float]):
    run, _ = step(target.backend, arguments)
    run()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        run()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@on_targets(GPU_TARGETS)
def test_current_stream_is_used(target: Target):
    run, leaves = step(target.backend, LOSSES["streaming"])
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
@on_targets(GPU_TARGETS)
def test_graph_capture(target: Target, loss: str):
    run, leaves = step(target.backend, LOSSES[loss])
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


@on_targets(GPU_TARGETS)
def test_memory_of_streaming_grows_with_the_batch_not_its_square(target: Target):
    def growth(batch: int) -> int:
        run, _ = step(target.backend, LOSSES["streaming"], batch, frames=2, dim=16)
        run()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before

    # Chunks are of fixed size, and dominate; A × B numbers would be 1 GiB in the larger batch.
    assert growth(16384) < growth(4096) + 2**28


@on_targets(GPU_TARGETS)
def test_index_out_of_range_is_noticed(target: Target):
    # A device-side assertion ends the process's context: in a process of its own.
    code = (
        "import torch, garevla\n"
        "psi = garevla.CrossAttentionPsi(16).cuda()\n"
        f"loss = garevla.GareLoss(psi, backend={target.backend!r}, lambda_direction=0.0)\n"
        "text, video = torch.randn(4, 16).cuda(), torch.randn(4, 3, 16).cuda()\n"
        "loss(text, video, 20.0, targets=torch.tensor([0, 1, 2, 4]).cuda())\n"
        "torch.cuda.synchronize()\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert result.returncode != 0
    # Whichever call comes next reports it in its own words; the device's own come first.
    assert "_assert_async" in result.stderr or "device-side assert" in result.stderr
