"""Peak growth of memory during a call.

On a GPU, the CUDA allocator's peak above what was allocated before. On a CPU, this process's peak
resident memory above what was resident before: Linux can reset the peak
(``/proc/self/clear_refs``), and free memory that the allocator holds back is returned first. Where
the peak cannot be reset, a thread looks at the resident memory every millisecond. Meanwhile glibc
serves blocks of a MiB or more apart, and gives them back at once: else holes between freed blocks
are counted, several times what a call holds. Elsewhere than on Linux: unknown.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"
# Parameters of glibc's mallopt, and the largest thresholds that it gets to by itself.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_BLOCK_APART = 2**20
_LARGEST_MMAP_THRESHOLD, _LARGEST_TRIM_THRESHOLD = 2**25, 2**26


def peak_growth(call: Callable[[], object], device: torch.device) -> int | None:
    """Bytes by which memory grows at most while ``call`` runs; None where that is unknown."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    if not _STATUS.exists():
        call()
        return None
    with _blocks_apart():
        try:
            _CLEAR_REFS.write_text(_RESET_PEAK)
        except OSError:
            return _sampled_growth(call)
        before = _kilobytes("VmRSS")
        call()
        return max(0, _kilobytes("VmHWM") - before) * 1024


def method(device: torch.device) -> str:
    """How :func:`peak_growth` measures here, for the result file."""
    if device.type == "cuda":
        return "CUDA allocator"
    if not _STATUS.exists():
        return "unknown"
    resettable = os.access(_CLEAR_REFS, os.W_OK)
    return "peak resident memory" if resettable else "resident memory, sampled"


def available(device: torch.device) -> int | None:
    """Bytes that could be allocated now; None where unknown."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return free + cached
    with contextlib.suppress(OSError, ValueError):
        limits = [_meminfo("MemAvailable")]
        group = Path("/sys/fs/cgroup")
        with contextlib.suppress(OSError, ValueError):
            limit = int((group / "memory.max").read_text())
            limits.append(limit - int((group / "memory.current").read_text()))
        return min(limits)
    return None


def _kilobytes(field: str) -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1])
    raise ValueError(f"{_STATUS} has no {field}")


def _meminfo(field: str) -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"/proc/meminfo has no {field}")


@contextlib.contextmanager
def _blocks_apart() -> Iterator[None]:
    """Return free memory; until the end, serve large blocks apart.

    glibc only: elsewhere what is reused is not counted, and holes are.
    """
    library = ctypes.CDLL(None)
    glibc = hasattr(library, "malloc_trim") and hasattr(library, "mallopt")
    if glibc:
        library.malloc_trim(0)
        library.mallopt(_MMAP_THRESHOLD, _BLOCK_APART)
    try:
        yield
    finally:
        if glibc:
            library.mallopt(_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)
            library.mallopt(_TRIM_THRESHOLD, _LARGEST_TRIM_THRESHOLD)


def _sampled_growth(call: Callable[[], object]) -> int:
    peak = before = _kilobytes("VmRSS")
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(1e-3):
            peak = max(peak, _kilobytes("VmRSS"))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        call()
    finally:
        done.set()
        thread.join()
    return (max(peak, _kilobytes("VmRSS")) - before) * 1024
