"""A digest at the end of a zip archive, such as ``torch.save`` writes, of all before it.

It is the archive's comment: whoever reads the archive passes it over. The checksums that are in an
archive anyway guard its records, but not the headers by which they are found, and ``torch.load``
does not check them.
"""

from __future__ import annotations

import hashlib
import os
import struct
from pathlib import Path
from typing import BinaryIO

_LABEL = b"garevla sha256 "
# An archive ends with the length of its comment, and the comment.
_NO_COMMENT = struct.pack("<H", 0)
_NO_DIGEST = "0" * 64
_CHUNK_BYTES = 1 << 20


class DigestingWriter:
    """Passes on to a file what is written, and can end it with the digest.

    Args:
        file: open for writing and seeking, and empty.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._hash = hashlib.sha256()

    def write(self, content: bytes) -> int:
        """Write bytes; called by ``torch.save``."""
        self._hash.update(content)
        return self._file.write(content)

    def flush(self) -> None:
        """Called by ``torch.save`` at its end."""
        self._file.flush()

    def finish(self) -> None:
        """Write the digest behind the complete archive."""
        self._file.seek(-len(_NO_COMMENT), os.SEEK_END)
        self._file.write(_tail(self._hash.hexdigest()))


def is_as_written(path: Path) -> bool:
    """Whether a file ends with the digest of all before it, or as an archive without a comment.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        length = max(0, file.seek(0, os.SEEK_END) - len(_tail(_NO_DIGEST)))
        file.seek(length)
        tail = file.read()
        if _LABEL not in tail:
            return tail.endswith(_NO_COMMENT)
        content_hash = hashlib.sha256()
        file.seek(0)
        while length > 0:
            chunk = file.read(min(length, _CHUNK_BYTES))
            content_hash.update(chunk)
            length -= len(chunk)
    content_hash.update(_NO_COMMENT)
    return tail == _tail(content_hash.hexdigest())


def _tail(digest: str) -> bytes:
    """What takes the place of the length of no comment."""
    comment = _LABEL + digest.encode()
    return struct.pack("<H", len(comment)) + comment
