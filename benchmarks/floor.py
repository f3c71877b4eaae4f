"""The floor: matrix products that no exact implementation can do without, timed bare.

docs/performance.md explains what is counted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.cases import Case
from benchmarks.timing import best_seconds
from garevla.ops.products import onednn_linear, onednn_unavailable

HEADS = 1
# ψ's D × D products with every frame: keys, keys seen from the gap, values, their output, the
# residual layer, the last layer.
FRAME_PRODUCTS = 6
# A product's gradient takes two products more.
WITH_GRADIENT = 3
# The largest tile of pair rows written at once: stays in a CPU's cache, fills a GPU.
TILE_ELEMENTS = {"cpu": 2**20, "cuda": 2**26}
COPIED_BYTES = {"cpu": 2**28, "cuda": 2**30}


@dataclass
class Floor:
    """Seconds of the parts; ``seconds`` is what a time is compared with."""

    pair_seconds: float
    frame_seconds: float
    direction_seconds: float
    bytes: int
    copy_bytes_per_second: float

    @property
    def copy_seconds(self) -> float:
        return self.bytes / self.copy_bytes_per_second

    @property
    def seconds(self) -> float:
        """The products one after the other, or the memory traffic, whichever takes longer."""
        products = self.pair_seconds + self.frame_seconds + self.direction_seconds
        return max(products, self.copy_seconds)

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "copy_seconds": self.copy_seconds, "seconds": self.seconds}


def rows_per_video(case: Case) -> int:
    """R, the vectors of a video that meet every text: keys, frames, basis."""
    if case.workload == "info_nce":
        return 1
    return (2 * HEADS + 1) * case.mean_frames + 2


def copy_bandwidth(device: torch.device) -> float:
    """Bytes read and written per second by a copy far larger than the cache."""
    source = torch.randn(COPIED_BYTES.get(device.type, 2**28) // 4, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / best_seconds(lambda: target.copy_(source), device)


def measure_floor(case: Case, device: torch.device, bandwidth: float) -> Floor:
    """Time the products of a case."""
    return Floor(
        pair_seconds=(_hidden_seconds if case.hidden else _pair_seconds)(case, device),
        frame_seconds=_frame_seconds(case, device) if _has_factors(case) else 0.0,
        direction_seconds=_direction_seconds(case, device) if case.direction == "exact" else 0.0,
        bytes=_least_bytes(case),
        copy_bytes_per_second=bandwidth,
    )


_Product = Callable[[Tensor, Tensor, Tensor], object]
"""Of left (N, K) and right (K, M), in the memory of the third (N, M) or in its own."""


def _fastest(case: Case, device: torch.device, seconds: Callable[[_Product], float]) -> float:
    """The least seconds over the libraries that multiply as exactly."""
    products: list[_Product] = [lambda left, right, out: torch.mm(left, right, out=out)]
    of_cpu = device.type == "cpu" and case.compute_dtype == torch.float32
    if of_cpu and onednn_unavailable() is None:
        products.append(lambda left, right, out: onednn_linear(left, right.mT))
    return min(seconds(product) for product in products)


def _has_factors(case: Case) -> bool:
    """Whether ψ turns frames into rows that meet the texts."""
    return case.workload != "info_nce" and not case.hidden


def _normal(case: Case, device: torch.device, *shape: int) -> Tensor:
    return torch.randn(*shape, device=device, dtype=case.compute_dtype)


def _pair_seconds(case: Case, device: torch.device) -> float:
    """Texts times rows, tile by tile; backward: that again, and one product for each side."""
    batch, rows = case.batch, case.batch * rows_per_video(case)
    tile = max(1, min(rows, TILE_ELEMENTS.get(device.type, 2**20) // batch))
    text, video = _normal(case, device, batch, case.dim), _normal(case, device, rows, case.dim)
    dots = _normal(case, device, tile, batch)
    video_gradient = torch.empty_like(video)
    text_gradient = torch.empty_like(text)
    tiles = [slice(start, min(start + tile, rows)) for start in range(0, rows, tile)]

    def forward(product: _Product) -> None:
        for part in tiles:
            product(video[part], text.mT, dots[: part.stop - part.start])

    def backward(product: _Product) -> None:
        for part in tiles:
            grad = dots[: part.stop - part.start]
            product(grad, text, video_gradient[part])
            product(grad.mT, video[part], text_gradient)

    def seconds(product: _Product) -> float:
        once = best_seconds(lambda: forward(product), device)
        if not case.backward:
            return once
        # Values grow from call to call otherwise, and huge ones are as bad a sample as zeros.
        dots.normal_()
        return 2 * once + best_seconds(lambda: backward(product), device)

    return _fastest(case, device, seconds)


def _hidden_seconds(case: Case, device: torch.device) -> float:
    """Hidden vectors times D × H weights; backward: that again, and one product for each side.

    Of one tile of pairs, times their number: an implementation works in the same memory, too.
    """
    pairs = case.batch**2
    rows = max(1, min(pairs, TILE_ELEMENTS.get(device.type, 2**20) // case.dim))
    weight = _normal(case, device, case.dim, case.dim)
    hidden, increments = (_normal(case, device, rows, case.dim) for _ in range(2))
    out, weight_gradient = torch.empty_like(hidden), torch.empty_like(weight)

    def backward(product: _Product) -> None:
        product(increments, weight, out)
        product(increments.mT, hidden, weight_gradient)

    def seconds(product: _Product) -> float:
        once = best_seconds(lambda: product(hidden, weight.mT, out), device)
        if not case.backward:
            return once
        return 2 * once + best_seconds(lambda: backward(product), device)

    return _fastest(case, device, seconds) * pairs / rows


def _frame_seconds(case: Case, device: torch.device) -> float:
    frames = _normal(case, device, case.batch * case.mean_frames, case.dim)
    weight = _normal(case, device, case.dim, case.dim)
    out = torch.empty_like(frames)
    seconds = _fastest(
        case, device, lambda product: best_seconds(lambda: product(frames, weight, out), device)
    )
    return FRAME_PRODUCTS * seconds * (WITH_GRADIENT if case.backward else 1)


def _direction_seconds(case: Case, device: torch.device) -> float:
    """Of a few texts, times their share: unit increments, half their Gram matrix, its gradient.

    Where pairs have hidden vectors, their increments are at hand.
    """
    basis_size = HEADS * case.mean_frames + 2
    texts = max(1, min(case.batch, 2**24 // (case.batch * (case.batch + case.dim))))
    coefficients = _normal(case, device, case.batch, texts, basis_size)
    basis = _normal(case, device, case.batch, basis_size, case.dim)
    units = _normal(case, device, texts, case.batch, case.dim)
    forming = 0.0 if case.hidden else best_seconds(lambda: coefficients @ basis, device)
    kernel = _normal(case, device, texts, case.batch, case.batch)
    total = forming + _batched_seconds(case, device, units, units.mT, kernel) / 2
    if case.backward:
        kernel = torch.randn_like(kernel)
        total += 2 * forming + _batched_seconds(
            case, device, kernel, units, torch.empty_like(units)
        )
    return total * case.batch / texts


def _batched_seconds(
    case: Case, device: torch.device, left: Tensor, right: Tensor, out: Tensor
) -> float:
    """Of products (N, P, Q) · (N, Q, R), all at once or one after the other."""

    def one_by_one(product: _Product) -> float:
        def call() -> None:
            for parts in zip(left, right, out, strict=True):
                product(*parts)

        return best_seconds(call, device)

    at_once = best_seconds(lambda: torch.bmm(left, right, out=out), device)
    return at_once if device.type != "cpu" else min(at_once, _fastest(case, device, one_by_one))


def _least_bytes(case: Case) -> int:
    """Texts, frames and the videos' rows, if any, read once, and their gradients written once."""
    item = case.compute_dtype.itemsize
    rows = case.batch * rows_per_video(case) * case.dim if _has_factors(case) else 0
    features = case.batch * (case.mean_frames + 1) * case.dim
    result = case.batch**2 if case.workload == "similarity" else 0
    once = (rows + features + result) * item
    return 3 * once if case.backward else once
