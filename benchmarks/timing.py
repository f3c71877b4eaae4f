"""Seconds of a call: CUDA events on a GPU, the monotonic clock elsewhere."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import torch

# A sample shorter than this repeats its call.
SHORTEST_SAMPLE = 5e-3
MOST_CALLS = 50
# Of a sample's time, waiting for a core: threads that wait for each other lose far more than that.
CONTENDED = 0.03
# Samples are repeated where other processes were in the way, up to this often.
MOST_REPEATS = 4
_THREADS = Path("/proc/self/task")


class Sample(NamedTuple):
    """Seconds of a call, and the share of them that threads waited for a core."""

    seconds: float
    waited: float

    @property
    def contended(self) -> bool:
        """Whether other processes took cores that this one needed."""
        return self.waited > CONTENDED


class Summary(NamedTuple):
    """Median and quartiles of samples."""

    median: float
    lower: float
    upper: float


def synchronize(device: torch.device) -> None:
    """Wait for all work on a GPU; nothing elsewhere."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(call: Callable[[], object], device: torch.device, calls: int = 1) -> float:
    """Mean seconds of ``calls`` successive calls."""
    synchronize(device)
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


def waited_seconds() -> float:
    """Seconds that this process's threads were ready to run and had no core; 0 where unknown."""
    nanoseconds = 0
    for path in _THREADS.glob("*/schedstat"):
        # A thread may end meanwhile.
        with contextlib.suppress(OSError, IndexError, ValueError):
            nanoseconds += int(path.read_text().split()[1])
    return nanoseconds / 1e9


def sample(call: Callable[[], object], device: torch.device, calls: int = 1) -> Sample:
    """Mean seconds of ``calls`` successive calls, and how far other processes were in the way."""
    waited, begin = waited_seconds(), time.perf_counter()
    seconds = seconds_of(call, device, calls)
    elapsed = time.perf_counter() - begin
    return Sample(seconds, (waited_seconds() - waited) / max(elapsed, 1e-9))


def undisturbed(
    call: Callable[[], object],
    device: torch.device,
    calls: int = 1,
    may_repeat: Callable[[], bool] = lambda: True,
) -> Sample:
    """A sample, taken again where other processes were in the way; the least disturbed one."""
    found = [sample(call, device, calls)]
    while found[-1].contended and len(found) < MOST_REPEATS and may_repeat():
        found.append(sample(call, device, calls))
    return min(found, key=lambda one: one.waited)


def calls_per_sample(estimate: float) -> int:
    """How many calls of about ``estimate`` seconds make a sample long enough to time."""
    return max(1, min(MOST_CALLS, round(SHORTEST_SAMPLE / max(estimate, 1e-9))))


def best_seconds(call: Callable[[], object], device: torch.device, repeats: int = 3) -> float:
    """The fastest of a few samples after one to warm up: for floors."""
    calls = calls_per_sample(seconds_of(call, device))
    return min(undisturbed(call, device, calls).seconds for _ in range(repeats))


def summarize(samples: Iterable[float]) -> Summary:
    """Median and quartiles; of one sample, that sample."""
    values = sorted(samples)
    if len(values) == 1:
        return Summary(values[0], values[0], values[0])
    lower, _, upper = statistics.quantiles(values, n=4, method="inclusive")
    return Summary(statistics.median(values), lower, upper)
