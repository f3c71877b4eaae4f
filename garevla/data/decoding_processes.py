"""Decoding files in processes of their own, which may crash or never end."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from garevla.data.frame_sampling import Sampling
from garevla.data.video import Verdict

Question = TypeVar("Question")

# A process begins anew: a copy of this one (a fork) may hold locks, and decoders whose threads were
# not copied with it. It does not run the program's main module again, as those of multiprocessing
# do.
_BEGINNING = """
import sys
sys.path[:] = {path!r}
from garevla.data.decoding_process import serve
serve()
"""


def try_decoding(
    paths: list[Path], sampling: Sampling, num_workers: int, timeout: float
) -> Iterator[tuple[Path, Verdict]]:
    """Yield each file with what :func:`garevla.data.video.check_video` finds, in the order they
    get done.

    Args:
        paths: video files.
        sampling: which frames would be read of each.
        num_workers: processes, at least 1.
        timeout: seconds for one file.

    Raises:
        RuntimeError: an error that is no file's fault.
    """
    questions = map(str, paths)
    function, settings = "garevla.data.decoding_process:check", sampling.as_settings()
    for path, answer in ask_processes(function, settings, questions, num_workers, timeout):
        yield Path(path), as_verdict(answer)


def as_verdict(answer: Any) -> Verdict:
    """The verdict whose fields were answered, or a bad one where there was no answer."""
    return Verdict(answer) if isinstance(answer, str) else Verdict(**answer)


def ask_processes(
    function: str,
    settings: Any,
    questions: Iterable[Question],
    num_workers: int,
    timeout: float,
) -> Iterator[tuple[Question, Any]]:
    """Yield each question with a function's answer, in the order they get done.

    No more is asked ahead than keeps the processes at work while an answer is used.

    Args:
        function: ``"module:name"`` of ``name(question, settings)``, whose answer is no string.
        settings: the same for all questions. They, questions and answers are what JSON can hold.
        questions: about a file each.
        num_workers: processes, at least 1.
        timeout: seconds for one answer.

    Yields:
        The answer; why there is none, as a string, where the process crashed or was too slow.

    Raises:
        OSError: the function cannot write something.
        RuntimeError: it has raised another error.
    """
    rest = iter(questions)
    pool = DecodingPool(function, settings, timeout)
    with ThreadPoolExecutor(num_workers) as executor:
        futures: dict[Future[Any], Question] = {}
        try:
            while True:
                for question in islice(rest, 2 * num_workers - len(futures)):
                    futures[executor.submit(pool.ask, question)] = question
                if not futures:
                    return
                for future in wait(futures, return_when=FIRST_COMPLETED).done:
                    yield futures.pop(future), future.result()
        finally:
            executor.shutdown(wait=False, cancel_futures=True)
            pool.close()


class DecodingPool:
    """A process for each of the threads that call :meth:`ask`.

    Args:
        function, settings, timeout: as for :func:`ask_processes`.
    """

    def __init__(self, function: str, settings: Any, timeout: float) -> None:
        self.command = _command(function, settings)
        self.timeout = timeout
        self.lock = threading.Lock()
        self.workers: dict[int, _Worker] = {}
        self.is_closed = False

    def ask(self, question: object) -> Any:
        """The answer; why there is none, as a string, where the process crashed or was too slow.

        Raises:
            RuntimeError: the function has raised an error, or the pool is closed.
        """
        thread = threading.get_ident()
        with self.lock:
            if self.is_closed:
                raise RuntimeError("the work has been stopped")
            if thread not in self.workers:
                self.workers[thread] = _Worker(self.command)
            worker = self.workers[thread]
        answer = worker.ask(question, self.timeout)
        if not worker.is_usable:
            with self.lock:
                worker.stop()
                del self.workers[thread]
        return answer

    def close(self) -> None:
        """End all processes, at work or not."""
        with self.lock:
            self.is_closed = True
            for worker in self.workers.values():
                worker.stop()


class _Worker:
    """A process that answers one question at a time.

    Attributes:
        is_usable: whether it can take another one.
    """

    def __init__(self, command: list[str]) -> None:
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # The report says what is wrong; the decoders' own lines would tear the progress bar.
            stderr=subprocess.DEVNULL,
        )
        self.is_usable = True
        self.has_started = False

    def ask(self, question: object, timeout: float) -> Any:
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
        answer = self._send_and_receive(question)
        timer.cancel()
        if answer is None:
            self.is_usable = False
            if is_late.is_set():
                return f"not decoded within {timeout:g} seconds"
            return f"the decoder crashed (exit code {self.process.wait()})"
        if "not_written" in answer:
            failure = OSError(answer["not_written"])
            failure.errno = answer["errno"]
            raise failure
        if "failure" in answer:
            raise RuntimeError(f"decoding {question} failed:\n{answer['failure']}")
        return answer["answer"]

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()

    def _send_and_receive(self, question: object) -> dict[str, Any] | None:
        """Its answer; None where it has died."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(question).encode() + b"\n")
            self.process.stdin.flush()
        except OSError:
            return None
        return self._receive()

    def _receive(self) -> dict[str, Any] | None:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        return json.loads(line) if line.endswith(b"\n") else None


def _command(function: str, settings: Any) -> list[str]:
    beginning = _BEGINNING.format(path=sys.path)
    return [sys.executable, "-c", beginning, function, json.dumps(settings)]
