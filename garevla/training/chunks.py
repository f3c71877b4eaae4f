"""Encoders that hold the activations of a few rows at a time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def in_chunks(
    encode: Callable[..., Tensor], size: int, *inputs: Tensor, device: torch.device | None = None
) -> Tensor:
    """``encode(*inputs)``, a chunk of rows at a time, each encoded again in the backward pass.

    The result and its gradients are those of the whole batch, where ``encode`` treats rows by
    themselves, with the memory of one chunk; forward passes run twice. A chunk's dropout masks
    are the same both times, but others than those of the whole batch at once.

    Args:
        encode: of tensors with a common first axis.
        size: rows of a chunk; 0 takes all at once and keeps their activations.
        inputs: tensors with a common first axis.
        device: where to encode; each chunk is moved there by itself. By default where it lies.

    Raises:
        ValueError: a negative size.
    """
    if size < 0:
        raise ValueError(f"size must be at least 0, got {size}")

    def encode_moved(*chunk: Tensor) -> Tensor:
        if device is not None:
            chunk = tuple(x.to(device, non_blocking=True) for x in chunk)
        return encode(*chunk)

    if size == 0 or size >= len(inputs[0]):
        return encode_moved(*inputs)
    chunks = zip(*(x.split(size) for x in inputs), strict=True)
    return torch.cat([checkpoint(encode_moved, *chunk, use_reentrant=False) for chunk in chunks])
