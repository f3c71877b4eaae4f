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
    with _locked(folder / ".lock", f"into {folder}"):
        yield


@contextlib.contextmanager
def lock_file(path: Path) -> Iterator[None]:
    """The same for one file, by the lock ``<path>.lock`` beside it, which the end removes.

    Raises:
        InUseError, OSError: as :func:`lock_folder`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_name(f"{path.name}.lock")
    with _locked(lock, str(path)):
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


@contextlib.contextmanager
def _locked(path: Path, what: str) -> Iterator[None]:
    lock = FileLock(path)
    try:
        lock.acquire(timeout=_SECONDS)
    except Timeout:
        raise InUseError(
            f"another process is writing {what}: wait for its end, or write elsewhere"
        ) from None
    try:
        yield
    finally:
        lock.release()
