"""Named precisions of float32 matrix products, inside and outside of the head."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

PRECISIONS = {"float32": "highest", "tf32": "high", "bfloat16": "medium"}
"""Preset -> what :func:`torch.set_float32_matmul_precision` calls it."""


@contextmanager
def use_precision(name: str) -> Iterator[None]:
    """Compute float32 matrix products in a named precision; inputs and results stay float32.

    Put the backward pass inside, too. The setting is torch's own and holds for the whole process,
    encoders included.

    Args:
        name: ``"float32"``: exact, torch's default. ``"tf32"``: operands of 10 bits' mantissa on
            CUDA; exact on a CPU. ``"bfloat16"``: operands of 7 bits' mantissa on a CPU that has
            instructions for it (AMX, AVX512-BF16), exact on others; as ``"tf32"`` on
            CUDA. Accumulation is in float32 always.

    Raises:
        ValueError: unknown name.
    """
    if name not in PRECISIONS:
        raise ValueError(f"precision must be one of {sorted(PRECISIONS)}, got {name!r}")
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(PRECISIONS[name])
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
