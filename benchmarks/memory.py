"""Peak growth of memory during a call.

On a GPU, the CUDA allocator's peak above what was allocated before. On a CPU, this process's peak
resident memory above what was resident before: Linux can reset the peak
(``/proc/self/clear_refs``), and free memory that the allocator holds back is returned first. Where
the peak cannot be reset, a thread looks at the resident memory every millisecond. Elsewhere than on
Linux: unknown.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import threading
from collections.abc import Callable
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"


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
    _return_free_memory()
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


def _return_free_memory() -> None:
    # glibc only; elsewhere the measurement may come out too small by what is reused.
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


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
