"""metrics.jsonl: one JSON object a line, which a resumed run continues without repeats."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any


class MetricsLog:
    """Appends records to a JSONL file, from a given length on.

    Args:
        path: the file; made if it is not there.
        keep_bytes: what a checkpoint noted of :attr:`num_bytes`. Later records, from after the
            checkpoint, are cut off: the resumed run writes them again.
    """

    def __init__(self, path: str | os.PathLike[str], keep_bytes: int = 0) -> None:
        self._file = Path(path).open("a+b")  # noqa: SIM115 - closed by __exit__
        self._file.truncate(min(keep_bytes, self.num_bytes))

    @property
    def num_bytes(self) -> int:
        """Length of the file so far."""
        return self._file.seek(0, os.SEEK_END)

    def write(self, record: dict[str, Any]) -> None:
        """Append a record; it is in the file when this returns."""
        self._file.write(json.dumps(record).encode() + b"\n")
        self._file.flush()

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Records of a metrics.jsonl, in order.

    Raises:
        ValueError: a line that is not JSON, named by its number.
    """
    records = []
    for number, line in enumerate(Path(path).read_text().splitlines(), start=1):
        try:
            records.append(json.loads(line))
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: not JSON: {error}") from error
    return records
