"""What an unfinished run has written."""

from __future__ import annotations

import json
from pathlib import Path


def journal_of(output: Path) -> Path:
    return output.with_name(f"{output.name}.partial.jsonl")


def journalled(output: Path) -> list[str]:
    return [json.loads(line)["video_id"] for line in journal_of(output).open().readlines()[1:]]
