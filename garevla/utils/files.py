"""Files that are whole or not there."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

_UNFINISHED = ".tmp"


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a file to write so that a crash at any moment leaves the old one or the new one.

    What is written goes to a temporary file beside ``path``, which takes its place at the end of
    the block, and is removed should the block raise. Two processes that write the same file do not
    meet: the last to finish has it.

    Args:
        path: the file to write or replace; its folder must exist.

    Raises:
        OSError: it cannot be written; what was there is unchanged.
    """
    path = Path(path)
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(8)}{_UNFINISHED}")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        reason = _system_error(error)
        if reason is None:
            raise
        failure = OSError(
            f"{path} cannot be written: {reason.strerror or reason}; what was there is unchanged"
        )
        failure.errno = reason.errno
        raise failure from error
    sync_folder(path.parent)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file in UTF-8, by :func:`atomic_file`."""
    with atomic_file(path) as file:
        file.write(text.encode())


def remove_unfinished(path: str | os.PathLike[str]) -> None:
    """Remove what killed processes left of writing a file, while no other one can be at it."""
    path = Path(path)
    for temporary in path.parent.glob(f"{path.name}.*{_UNFINISHED}"):
        temporary.unlink(missing_ok=True)


def _system_error(error: BaseException) -> OSError | None:
    """The error of the system behind an error.

    ``torch.save`` reports what it meets while writing as a RuntimeError of its own.
    """
    seen: BaseException | None = error
    while seen is not None and isinstance(seen, Exception):
        if isinstance(seen, OSError):
            return seen
        seen = seen.__cause__ or seen.__context__
    return None


def sync_folder(folder: Path) -> None:
    """Make a rename last through a power cut; not every system can open folders."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
