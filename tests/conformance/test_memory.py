"""The statistics hold nothing of A·B elements."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.conformance.operations import inputs_of, leaves, outputs
from tests.conformance.targets import Target, on_operations
from tests.head.test_memory import LargestTensor


@on_operations(labels=["pair_statistics"])
def test_statistics_hold_no_pairs(target: Target, operation: str):
    texts, videos = size = (40, 8)
    inputs = inputs_of(operation, (*size, 1, 4, 1), torch.float32, target.device)
    saved: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor.untyped_storage().nbytes() // 4)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x), LargestTensor() as largest:
        found = outputs(operation, target.backend, inputs)
        total = sum(value.sum() for value in found)
        torch.autograd.grad(total, list(leaves(inputs).values()), allow_unused=True)
    assert max(saved) < texts * videos
    # Which sees nothing inside an operator: tests/kernels does.
    assert largest.elements < texts * videos
