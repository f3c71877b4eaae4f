"""What every benchmark's result file holds beside the results: machine, versions, command."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from garevla.env import collect


def write_results(path: Path, module: str, results: list[dict[str, Any]], **extra: Any) -> None:
    """Write results as JSON, with the command, the commit and :func:`garevla.env.collect`."""
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    document = {
        "command": shlex.join(["python", "-m", module, *sys.argv[1:]]),
        "commit": commit,
        "environment": collect(),
        **extra,
        "results": results,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1, default=str) + "\n", encoding="utf-8")
