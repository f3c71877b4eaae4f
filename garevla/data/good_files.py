"""A note of the video files found good, so that they need not be decoded again."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from pathlib import Path

from garevla.data.frame_sampling import Sampling
from garevla.data.video import Verdict
from garevla.utils.files import write_text

_log = logging.getLogger(__name__)

Signature = list[int]
"""A file's size in bytes and its time of change in nanoseconds."""

# Files found good by a less thorough check are checked again.
_CHECK_VERSION = 2


class GoodFiles:
    """Files found good with some sampling.

    Args:
        path: the JSON file that holds them, taken as empty where it is missing, unusable or of
            another sampling; None keeps no note.
        sampling: which frames were read of each.
    """

    def __init__(self, path: str | os.PathLike[str] | None, sampling: Sampling) -> None:
        self.path = None if path is None else Path(path)
        self.settings = {"check": _CHECK_VERSION, **sampling.as_settings()}
        # The signature and whether the file's length is known.
        self.notes: dict[str, tuple[Signature, bool]] = {}
        if self.path is not None:
            errors = (OSError, ValueError, KeyError, TypeError, RecursionError)
            with contextlib.suppress(*errors):
                stored = json.loads(self.path.read_text(encoding="utf-8"))
                if stored["settings"] == self.settings:
                    self.notes = {
                        path: (signature, length_is_known)
                        for path, (signature, length_is_known) in dict(stored["good"]).items()
                    }

    def find(self, path: Path, signature: Signature | None) -> Verdict | None:
        """What a check found of a file, if that was good and the file has not changed since."""
        noted, length_is_known = self.notes.get(os.path.abspath(path), (None, False))
        if signature is None or noted != signature:
            return None
        return Verdict(None, length_is_known)

    def note(self, path: Path, signature: Signature | None, verdict: Verdict) -> None:
        """Note a file, if it is good, by what it was like before it was decoded."""
        if verdict.reason is None and signature is not None:
            self.notes[os.path.abspath(path)] = (signature, verdict.length_is_known)

    def save(self) -> None:
        """Write the note; where that is impossible, the files will be decoded again, no more."""
        if self.path is None:
            return
        content = {"settings": self.settings, "good": self.notes}
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
