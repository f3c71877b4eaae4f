"""Decoding files in processes of their own, which may crash or never end."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from garevla.data.frame_sampling import Sampling
from garevla.data.video import Verdict

# A process begins anew: a copy of this one (a fork) may hold locks, and decoders whose threads were
# not copied with it. It does not run the program's main module again, as those of multiprocessing
# do, and never imports torch.
_BEGINNING = """
import sys
sys.path[:] = {path!r}
from garevla.data.decoding_process import serve
serve()
"""


Key = TypeVar("Key")


class Task(NamedTuple):
    """What the processes do with each file.

    Attributes:
        name: one of the tasks of :mod:`garevla.data.decoding_process`.
        settings: plain values that hold for all files.
    """

    name: str
    settings: dict[str, Any]


def try_decoding(
    paths: list[Path], sampling: Sampling, num_workers: int, timeout: float
) -> Iterator[tuple[Path, Verdict]]:
    """Yield each file with what :func:`garevla.data.video.check_video` finds, in the order they
    get done; arguments and errors as of :func:`run_task`."""
    jobs = {path: str(path) for path in paths}
    return run_task(Task("check", sampling.as_settings()), jobs, num_workers, timeout)


def run_task(
    task: Task, jobs: Mapping[Key, Any], num_workers: int, timeout: float
) -> Iterator[tuple[Key, Verdict]]:
    """Yield each job's key with what was found of its file, in the order they get done.

    Args:
        task: what is to be done.
        jobs: plain values, what the task needs to know of each file.
        num_workers: processes, at least 1.
        timeout: seconds for one file.

    Raises:
        OSError: something cannot be written.
        RuntimeError: an error that is no file's fault.
    """
    if not jobs:
        return
    pool = _Pool(task, timeout)
    with ThreadPoolExecutor(min(num_workers, len(jobs))) as executor:
        futures = {executor.submit(pool.run, job): key for key, job in jobs.items()}
        try:
            for future in as_completed(futures):
                yield futures.pop(future), future.result()
        finally:
            executor.shutdown(wait=False, cancel_futures=True)
            pool.close()


class _Pool:
    """A process for each of the threads that call :meth:`run`."""

    def __init__(self, task: Task, timeout: float) -> None:
        self.task = task
        self.timeout = timeout
        self.lock = threading.Lock()
        self.workers: dict[int, _Worker] = {}
        self.is_closed = False

    def run(self, job: Any) -> Verdict:
        thread = threading.get_ident()
        with self.lock:
            if self.is_closed:
                raise RuntimeError("decoding has been stopped")
            if thread not in self.workers:
                self.workers[thread] = _Worker(self.task)
            worker = self.workers[thread]
        verdict = worker.run(job, self.timeout)
        if not worker.is_usable:
            with self.lock:
                worker.stop()
                del self.workers[thread]
        return verdict

    def close(self) -> None:
        """End all processes, at work or not."""
        with self.lock:
            self.is_closed = True
            for worker in self.workers.values():
                worker.stop()


class _Worker:
    """A process that is at one file at a time.

    Attributes:
        is_usable: whether it can take another file.
    """

    def __init__(self, task: Task) -> None:
        self.task = task
        self.process = subprocess.Popen(
            _command(task),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # The report says what is wrong; the decoders' own lines would tear the progress bar.
            stderr=subprocess.DEVNULL,
        )
        self.is_usable = True
        self.has_started = False

    def run(self, job: Any, timeout: float) -> Verdict:
        if not self.has_started:  # the time of its imports is no file's
            if self._receive() is None:
                raise RuntimeError(
                    f"no process that decodes can be started (exit code {self.process.wait()})"
                )
            self.has_started = True
        is_late = threading.Event()

        def stop() -> None:
            is_late.set()
            self.process.kill()

        timer = threading.Timer(timeout, stop)
        timer.start()
        answer = self._ask(job)
        timer.cancel()
        if answer is None:
            self.is_usable = False
            if is_late.is_set():
                return Verdict(f"not decoded within {timeout:g} seconds")
            return Verdict(f"the decoder crashed (exit code {self.process.wait()})")
        if "not_written" in answer:
            failure = OSError(answer["not_written"])
            failure.errno = answer["errno"]
            raise failure
        if "failure" in answer:
            raise RuntimeError(f"{self.task.name} of {job} failed:\n{answer['failure']}")
        return Verdict(**answer)

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()

    def _ask(self, job: Any) -> dict[str, Any] | None:
        """Its answer; None where it has died."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(job).encode() + b"\n")
            self.process.stdin.flush()
        except OSError:
            return None
        return self._receive()

    def _receive(self) -> dict[str, Any] | None:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        return json.loads(line) if line.endswith(b"\n") else None


def _command(task: Task) -> list[str]:
    return [sys.executable, "-c", _BEGINNING.format(path=sys.path), json.dumps(task)]
