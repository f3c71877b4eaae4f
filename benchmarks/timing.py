"""Seconds of a call: CUDA events on a GPU, the monotonic clock elsewhere."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch

# A sample shorter than this repeats its call.
SHORTEST_SAMPLE = 5e-3
MOST_CALLS = 50


class Summary(NamedTuple):
    """Median and quartiles of samples."""

    median: float
    lower: float
    upper: float


def synchronise(device: torch.device) -> None:
    """Wait for all work on a GPU; nothing elsewhere."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(call: Callable[[], object], device: torch.device, calls: int = 1) -> float:
    """Mean seconds of ``calls`` successive calls."""
    synchronise(device)
    if device.type == "cuda":
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(calls):
            call()
        stop.record()
        stop.synchronize()
        return start.elapsed_time(stop) / 1e3 / calls
    begin = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - begin) / calls


def calls_per_sample(estimate: float) -> int:
    """How many calls of about ``estimate`` seconds make a sample long enough to time."""
    return max(1, min(MOST_CALLS, round(SHORTEST_SAMPLE / max(estimate, 1e-9))))


def best_seconds(call: Callable[[], object], device: torch.device, repeats: int = 3) -> float:
    """The fastest of a few samples after one to warm up: for floors."""
    calls = calls_per_sample(seconds_of(call, device))
    return min(seconds_of(call, device, calls) for _ in range(repeats))


def summarise(samples: Iterable[float]) -> Summary:
    """Median and quartiles; of one sample, that sample."""
    values = sorted(samples)
    if len(values) == 1:
        return Summary(values[0], values[0], values[0])
    lower, _, upper = statistics.quantiles(values, n=4, method="inclusive")
    return Summary(statistics.median(values), lower, upper)
