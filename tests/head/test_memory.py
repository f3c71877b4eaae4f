"""The memory claim: nothing of A·B·D elements, and what autograd keeps stays O(A·B·K + B·F·D)."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import garevla
from garevla.reference import gare as reference
from tests.helpers import random_psi

FRAMES, DIM = 4, 512
BASIS = FRAMES + 2
# A tensor per step of the pair arithmetic, at most this many of them of A·B·K elements.
STEPS = 30


class LargestTensor(TorchDispatchMode):
    """Watches every operation's outputs, in forward and backward."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            # Views of something larger are no allocation.
            if isinstance(leaf, torch.Tensor):
                self.elements = max(self.elements, leaf.untyped_storage().nbytes() // 4)
        return out


def measure(loss_function, batch: int) -> tuple[int, int]:
    """(elements of the largest tensor, elements that autograd saves), float32."""
    text = torch.randn(batch, DIM, requires_grad=True)
    frames = torch.randn(batch, FRAMES, DIM, requires_grad=True)
    saved: dict[int, int] = {}

    def pack(tensor):
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes() // 4
        return tensor

    with LargestTensor() as largest:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = loss_function(text, frames)
        loss.backward()
    return largest.elements, sum(saved.values())


@pytest.mark.parametrize("batch", [128, 256])
def test_no_intermediate_and_no_saved_tensor_holds_a_vector_per_pair(batch: int):
    psi = random_psi(DIM)
    loss = garevla.GareLoss(psi)
    largest, saved = measure(lambda t, f: loss(t, f, 20.0).loss, batch)
    assert largest < batch * batch * DIM / 2
    parameters = sum(p.numel() for p in psi.parameters())
    # Each frame has a handful of D-vectors in ψ; each pair some STEPS·K numbers.
    assert saved < STEPS * batch * batch * BASIS + 20 * batch * BASIS * DIM + 2 * parameters


def test_saved_elements_of_chunked_pairs_do_not_grow_with_the_arithmetic(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr("garevla.ops.eager.pairs.CHUNK_ELEMENTS", 2**14)
    psi = random_psi(DIM)
    loss = garevla.GareLoss(psi, lambda_direction=0.0)
    _, saved = measure(lambda t, f: loss(t, f, 20.0).loss, 128)
    parameters = sum(p.numel() for p in psi.parameters())
    assert saved < 6 * 128 * 128 * BASIS + 20 * 128 * BASIS * DIM + 2 * parameters


def test_evaluation_holds_no_more_than_a_chunk(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("garevla.ops.eager.pairs.CHUNK_ELEMENTS", 2**16)
    psi = random_psi(DIM)
    text, frames = torch.randn(500, DIM), torch.randn(300, FRAMES, DIM)
    with torch.no_grad(), LargestTensor() as largest:
        garevla.gare_similarity(text, frames, psi)
    assert largest.elements <= max(300 * (2 * FRAMES + BASIS) * DIM, 500 * 300)


def test_the_watch_sees_what_the_published_formulas_hold():
    psi = random_psi(DIM)
    largest, saved = measure(lambda t, f: reference.loss(t, f, psi, 20.0), 32)
    assert largest >= 32 * 32 * DIM
    assert saved > 5 * 32 * 32 * DIM
