"""A note of the video files found good, so that they need not be decoded again."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from pathlib import Path

from garevla.data.frame_sampling import Sampling
from garevla.utils.files import write_text

_log = logging.getLogger(__name__)

Signature = list[int]
"""A file's size in bytes and its time of change in nanoseconds."""


class GoodFiles:
    """Files found good with some sampling.

    Args:
        path: the JSON file that holds them, taken as empty where it is missing, unusable or of
            another sampling; None keeps no note.
        sampling: which frames were read of each.
    """

    def __init__(self, path: str | os.PathLike[str] | None, sampling: Sampling) -> None:
        self.path = None if path is None else Path(path)
        self.settings = sampling.as_settings()
        self.signatures: dict[str, Signature] = {}
        if self.path is not None:
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                stored = json.loads(self.path.read_text(encoding="utf-8"))
                if stored["settings"] == self.settings:
                    self.signatures = dict(stored["good"])

    def has(self, path: Path, signature: Signature | None) -> bool:
        """Whether a file was found good, and has not changed since."""
        return signature is not None and self.signatures.get(os.path.abspath(path)) == signature

    def add(self, path: Path, signature: Signature | None) -> None:
        """Note a file, by what it was like before it was decoded."""
        if signature is not None:
            self.signatures[os.path.abspath(path)] = signature

    def save(self) -> None:
        """Write the note; where that is impossible, the files will be decoded again, no more."""
        if self.path is None:
            return
        content = {"settings": self.settings, "good": self.signatures}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_text(self.path, json.dumps(content))
        except OSError as error:
            _log.warning("videos found good are not noted: %s", error)


def signature(path: Path) -> Signature | None:
    """What tells whether a file has changed; None where there is no file."""
    try:
        status = path.stat()
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns]
