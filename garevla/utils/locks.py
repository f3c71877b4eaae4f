"""Locks that keep two processes from writing the same files."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

# What a killed process started may hold on to its lock for a few seconds more.
_SECONDS = 6.0


class InUseError(RuntimeError):
    """Another process is writing the same files."""


@contextlib.contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Keep other processes from writing into a folder, which is made where there is none.

    The lock, of the file ``.lock`` in it, ends with the process, however that ends.

    Raises:
        InUseError: another process has it.
        OSError: the folder cannot be made or written into.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=_SECONDS)
    except Timeout:
        raise InUseError(
            f"another process is writing into {folder}: wait for its end, or choose another folder"
        ) from None
    try:
        yield
    finally:
        lock.release()
