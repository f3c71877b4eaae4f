"""Calls in a process of their own, which may crash or hang without ending the trials."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any


class Failure(Exception):
    """What must never happen: a crash, a hang, a traceback."""


class Isolated:
    """A function called in another process, which is begun anew when it dies.

    Args:
        function: of a module, so that the process can import it.
        timeout: seconds for one call.
    """

    def __init__(self, function: Callable[..., Any], timeout: float = 60) -> None:
        self.function = function
        self.timeout = timeout
        self.process: Any = None

    def __call__(self, *arguments: Any) -> Any:
        """Return what the function returns.

        Raises:
            Failure: the process crashed or hung, or the function raised.
        """
        if self.process is None:
            context = multiprocessing.get_context("spawn")
            self.connection, theirs = context.Pipe()
            self.process = context.Process(target=_serve, args=(theirs, self.function), daemon=True)
            self.process.start()
            theirs.close()
            self.connection.recv()
        try:
            self.connection.send(arguments)
            if not self.connection.poll(self.timeout):
                self.close()
                raise Failure(f"hang: no answer within {self.timeout:g} seconds")
            answer, error = self.connection.recv()
        except (EOFError, ConnectionError) as gone:
            self.process.join()
            code = self.process.exitcode
            self.close()
            raise Failure(f"crash: exit code {code}") from gone
        if error is not None:
            raise Failure(f"traceback: {error}")
        return answer

    def close(self) -> None:
        """End the process."""
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.connection.close()
            self.process = None


def _serve(connection: Connection, function: Callable[..., Any]) -> None:
    # What libraries and commands print would drown the counts.
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    connection.send(None)
    with contextlib.suppress(EOFError):
        while True:
            arguments = connection.recv()
            try:
                connection.send((function(*arguments), None))
            except BaseException:
                connection.send((None, traceback.format_exc()))
