"""Decoding files in processes of their own, which may crash or never end."""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import time
import traceback
from collections.abc import Iterator
from multiprocessing.connection import Connection, wait
from pathlib import Path

from garevla.data._optional import require
from garevla.data.frame_sampling import Sampling
from garevla.data.video import VideoError, decode_all_frames, read_frames


def try_decoding(
    paths: list[Path], sampling: Sampling, num_workers: int, timeout: float
) -> Iterator[tuple[Path, str | None]]:
    """Yield each file with the reason why it is bad, or None, in the order they get done.

    Args:
        paths: video files.
        sampling: which frames are read before all are.
        num_workers: processes, at least 1.
        timeout: seconds for one file.

    Raises:
        RuntimeError: an error that is no file's fault.
    """
    waiting = iter(paths)
    workers: list[_Worker] = []
    try:
        for path in itertools.islice(waiting, num_workers):
            workers.append(_Worker(sampling))
            workers[-1].start(path, timeout)
        while workers:
            for worker in _wait_for_any(workers):
                path, reason = worker.path, worker.finish()
                following = next(waiting, None)
                if following is None or not worker.usable:
                    worker.stop()
                    workers.remove(worker)
                if following is not None:
                    if not worker.usable:
                        worker = _Worker(sampling)
                        workers.append(worker)
                    worker.start(following, timeout)
                yield path, reason
    finally:
        for worker in workers:
            worker.stop()


class _Worker:
    """A process that decodes one file at a time.

    Attributes:
        path: the file.
        deadline: when it must be done.
        usable: whether the process can take another file.
    """

    def __init__(self, sampling: Sampling) -> None:
        self.connection, theirs = multiprocessing.Pipe()
        self.process = multiprocessing.Process(target=_serve, args=(theirs, sampling), daemon=True)
        self.process.start()
        # Else the pipe would stay open when the process dies.
        theirs.close()
        self.usable = True

    def start(self, path: Path, timeout: float) -> None:
        self.path = path
        self.timeout = timeout
        self.deadline = time.monotonic() + timeout
        # A process that has just died shows when its answer is awaited.
        with contextlib.suppress(OSError):
            self.connection.send(path)

    def finish(self) -> str | None:
        """Why the file is bad, or None; called once there is an answer or the time is up."""
        try:
            if not self.connection.poll():
                self.usable = False
                return f"not decoded within {self.timeout:g} seconds"
            reason = self.connection.recv()
        except (EOFError, OSError):
            self.usable = False
            self.process.join()
            return f"the decoder crashed (exit code {self.process.exitcode})"
        if isinstance(reason, Exception):
            raise reason
        return reason

    def stop(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()


def _wait_for_any(workers: list[_Worker]) -> list[_Worker]:
    """Wait for a worker's answer or deadline; return all that have come to either."""
    soonest = min(worker.deadline for worker in workers)
    answering = wait(
        [worker.connection for worker in workers], timeout=max(0.0, soonest - time.monotonic())
    )
    now = time.monotonic()
    return [
        worker for worker in workers if worker.connection in answering or now >= worker.deadline
    ]


def _serve(connection: Connection, sampling: Sampling) -> None:
    decord = require("decord")
    # The report says what is wrong; FFmpeg's own lines would tear the progress bar.
    decord.logging.set_level(decord.logging.QUIET)
    # The pipe ends with the process that asked.
    with contextlib.suppress(EOFError):
        while True:
            connection.send(_reason(connection.recv(), sampling))


def _reason(path: Path, sampling: Sampling) -> str | Exception | None:
    """Why a file is bad, None, or an error that is not the file's fault."""
    try:
        read_frames(path, sampling)
        decode_all_frames(path)
    except VideoError as error:
        return error.reason
    except Exception:
        return RuntimeError(f"checking {path} failed:\n{traceback.format_exc()}")
    return None
