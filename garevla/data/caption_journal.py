"""The journal of a captioning run, with which it goes on where it was stopped."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any


class CaptioningError(RuntimeError):
    """A captioning model that cannot be used, or a journal that cannot be gone on with."""


class CaptionJournal:
    """The videos captioned so far: a line of settings, then a JSON line for each.

    Opened by ``with``, for adding.

    Args:
        path: the file, which need not be there.
        settings: all that decides a caption.

    Attributes:
        captions: video id -> its frames' captions, empty ones included.

    Raises:
        CaptioningError: the file is damaged, or of other settings.
    """

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self.path = path
        self.captions: dict[str, list[str]] = {}
        self._settings = settings
        self._num_bytes: dict[str, int | None] = {}
        content = path.read_bytes() if path.exists() else b""
        # What follows the last newline was cut off with the run that wrote it.
        self._whole = content[: content.rfind(b"\n") + 1]
        for number, line in enumerate(self._whole.splitlines(), start=1):
            try:
                record = json.loads(line)
                if number == 1:
                    before = dict(record["settings"])
                else:
                    self._note(record["video_id"], record["num_bytes"], record["captions"])
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise CaptioningError(
                    f"{path}, line {number}: damaged; remove the line, or the file to begin anew"
                ) from error
        if self.captions and before != settings:
            changes = [
                f"{key}: {before.get(key)!r} -> {settings.get(key)!r}"
                for key in before | settings
                if before.get(key) != settings.get(key)
            ]
            raise CaptioningError(
                f"{path} is of a run with other settings ({', '.join(changes)}): go on with those, "
                "or remove it to begin anew"
            )

    def has(self, video_id: str, path: Path) -> bool:
        """Whether there are captions of this video, from this file by its size."""
        return video_id in self.captions and self._num_bytes[video_id] == _size(path)

    def add(self, video_id: str, path: Path, captions: list[str]) -> None:
        """Note a video; it is in the file when this returns."""
        num_bytes = _size(path)
        self._write({"video_id": video_id, "num_bytes": num_bytes, "captions": captions})
        self._note(video_id, num_bytes, captions)

    def __enter__(self) -> CaptionJournal:
        self._file = self.path.open("ab")
        self._file.truncate(len(self._whole) if self.captions else 0)
        if not self.captions:
            self._write({"settings": self._settings})
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()

    def _write(self, record: dict[str, Any]) -> None:
        self._file.write(json.dumps(record).encode() + b"\n")
        self._file.flush()

    def _note(self, video_id: str, num_bytes: int | None, captions: list[str]) -> None:
        self.captions[video_id] = captions
        self._num_bytes[video_id] = num_bytes


def _size(path: Path) -> int | None:
    try:
        return os.stat(path).st_size
    except OSError:
        return None
