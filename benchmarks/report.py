"""What every benchmark's result file holds beside the results: machine, versions, command."""

from __future__ import annotations

import csv
import functools
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from garevla.utils.env import collect

_CPU = torch.device("cpu")


def write_results(
    path: Path,
    module: str,
    results: list[dict[str, Any]],
    *,
    device: torch.device = _CPU,
    **extra: Any,
) -> None:
    """Write results as JSON, with the command, the commit and :func:`garevla.utils.env.collect`."""
    document = {
        "command": _command(module),
        **_origin(),
        "device": _name_of(device),
        **extra,
        "results": [{**stamp(module, device), **row} for row in results],
    }
    _write(path, json.dumps(document, indent=1, default=str) + "\n")


def stamp(module: str, device: torch.device = _CPU) -> dict[str, str | None]:
    """What every row says of itself: machine, versions, commit, command."""
    return origin_of({**_origin(), "device": _name_of(device), "command": _command(module)})


def origin_of(document: dict[str, Any]) -> dict[str, str | None]:
    """What a result file says of where it comes from, as its rows do (:func:`stamp`)."""
    environment = document["environment"]
    packages = {"python": environment.get("python"), **environment["packages"]}
    return {
        "machine": document.get("device") or environment["cpu"]["model"],
        "versions": ", ".join(f"{name} {version}" for name, version in packages.items()),
        "commit": document.get("commit"),
        "command": document["command"],
    }


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows of plain values; nested ones are left to the JSON file."""
    plain = [
        {key: value for key, value in row.items() if not isinstance(value, (dict, list))}
        for row in rows
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = list(dict.fromkeys(key for row in plain for key in row))
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(plain)


def _command(module: str) -> str:
    return shlex.join(["python", "-m", module, *sys.argv[1:]])


def _name_of(device: torch.device) -> str:
    """``2 cores (a CPU)``, or the name of a GPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpu = _origin()["environment"]["cpu"]
    return f"{cpu['usable_cores']} cores ({cpu['model']})"


def _write(path: Path, text: str) -> None:
    # A run that is stopped while writing leaves the last whole file.
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


@functools.cache
def _origin() -> dict[str, Any]:
    changes = _git("status", "--porcelain", "--untracked-files=no")
    return {
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted_changes": changes if changes is None else bool(changes),
        "environment": collect(),
    }


def _git(*arguments: str) -> str | None:
    """Output of git; None where there is no git or no repository."""
    try:
        result = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
    except OSError:
        return None
    return result.stdout.strip() if result.returncode == 0 else None
