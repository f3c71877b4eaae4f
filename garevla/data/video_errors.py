"""The error for a video file that cannot be read."""

from __future__ import annotations

from pathlib import Path


class VideoError(RuntimeError):
    """A video file that cannot be read.

    Attributes:
        path: the file; None once the error has passed through a worker of a DataLoader, which
            keeps the message only. The message names the file and the reason.
    """

    # One argument must be enough: a DataLoader rebuilds errors of its workers from the message.
    def __init__(self, message: str, path: Path | None = None) -> None:
        super().__init__(message)
        self.path = path

    @classmethod
    def of(cls, path: Path, reason: str) -> VideoError:
        """Return the error for a file and a reason."""
        return cls(f"{path}: {reason}", path)

    @property
    def reason(self) -> str:
        """The message without the file."""
        return str(self).removeprefix(f"{self.path}: ")
