"""Sums over threads whose replicas agree in every bit."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def rounded_product(x, y):
    """x·y for a sum over threads: rounded, and never fused with an addition.

    Threads exchange their parts of a sum, and each adds the other's to its own. If the compiler
    fused that addition with the product before it, either thread would round one of the parts
    alone: their sums would differ in the last bit, and which of them is stored or used further is
    open.
    """
    return tl.fma(x, y, 0.0)
