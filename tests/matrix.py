"""Runs the tests that depend on torch, Triton and the compiler with supported versions.

    python -m tests.matrix [--torch 2.11.0 2.15.0 …]

Makes one environment per version in a temporary folder and removes it before the next: one takes
six gigabytes. All share a clone of the committed tree, in which native is compiled once. Needs
network, git and a compiler, and nothing installed. A row of tests/matrix.json says what was
installed and what pytest counted.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
TABLE = Path(__file__).with_suffix(".json")
TESTS = (
    "conformance",
    "discovla",
    "encoders",
    "evaluation",
    "head",
    "increments",
    "kernels",
    "ops",
    "utils",
)
REQUIREMENTS = ("pytest>=8", "setuptools>=77")
VERSIONS = "import torch, numpy; print(torch.__version__, numpy.__version__, end=' ')"
TRITON = "import triton; print(triton.__version__)"


@dataclass(frozen=True)
class Version:
    """A torch and what goes with it; its own requirements bring Triton.

    The others are which versions, such as ``<2``.
    """

    torch: str
    torchvision: str
    numpy: str = ""
    transformers: str = ""


SUPPORTED = (
    # Without compiled backends, which need torch 2.11.
    Version("2.4.1", "0.19", "<2", transformers="<5"),
    Version("2.7.1", "0.22", "<2.4"),
    Version("2.10.0", "0.25", "<2.4"),
    # Triton 3.6's interpreter needs an older numpy: it makes numbers of arrays of one element.
    Version("2.11.0", "0.26", "<2.4"),
    Version("2.12.1", "0.27"),
    Version("2.13.0", "0.28"),
    Version("2.14.1", "0.29"),
    Version("2.15.0", "0.29"),
)


def run(*command: Any, log: Path, **arguments: Any) -> str:
    """Run a command and return what it printed, which is also appended to the log."""
    print("$", *command, flush=True)
    result = subprocess.run(
        [str(part) for part in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        **arguments,
    )
    with open(log, "a", encoding="utf-8") as file:
        file.write(f"$ {' '.join(map(str, command))}\n{result.stdout}\n")
    if result.returncode not in (0, 1):  # pytest's 1: some tests failed
        raise RuntimeError(f"{command[0]} ended with {result.returncode}: {result.stdout[-2000:]}")
    return result.stdout


def install(version: Version, tree: Path, folder: Path, log: Path) -> Path:
    """Make an environment of one version in ``folder``; its Python."""
    python = folder / "environment/bin/python"
    run(sys.executable, "-m", "venv", folder / "environment", log=log)
    # Three equal signs: not a build for CPUs alone, which sorts higher and has no Triton.
    wanted = [f"torch==={version.torch}", f"torchvision=={version.torchvision}.*"]
    wanted += [f"numpy{version.numpy}", f"transformers{version.transformers}", *REQUIREMENTS]
    pip = (python, "-m", "pip", "install", "--quiet")
    skip = os.environ | {"GAREVLA_NATIVE": "skip"}
    run(*pip, *wanted, "--editable", f"{tree}[caption]", log=log, cwd=folder, env=skip)
    return python


def row(python: Path, tree: Path, log: Path) -> dict[str, Any]:
    """Test the tree in an environment."""
    commit = run("git", "-C", tree, "rev-parse", "--short", "HEAD", log=log).strip()
    # Compiles for the first version; for the others, nothing has changed.
    environment = os.environ | {"GAREVLA_CUDA_ARCHITECTURES": "90"}
    run(python, "setup.py", "--quiet", "build_ext", "--inplace", log=log, cwd=tree, env=environment)
    torch, numpy, triton = run(python, "-c", VERSIONS + "\n" + TRITON, log=log, cwd=tree).split()
    build = json.loads((tree / "garevla/_native_build.json").read_text())
    start = time.monotonic()
    paths = [tree / "tests" / name for name in TESTS if (tree / "tests" / name).exists()]
    printed = run(python, "-m", "pytest", "-q", "-m", "not slow", *paths, log=log, cwd=tree)
    counted = re.findall(r"(\d+) (passed|failed|skipped|error)", printed.splitlines()[-1])
    counts = {name: int(number) for number, name in counted}
    return {
        "torch": torch,
        "triton": triton,
        "numpy": numpy,
        "native": build["native"],
        "cuda_sources": build["cuda"],
        **{name: counts.get(name, 0) for name in ("passed", "failed", "skipped", "error")},
        "seconds": round(time.monotonic() - start),
        "date": time.strftime("%Y-%m-%d"),
        "cpu": _processor(),
        "python": platform.python_version(),
        "commit": commit,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    known = [version.torch for version in SUPPORTED]
    parser.add_argument("--torch", nargs="+", choices=known, default=known, metavar="VERSION")
    parser.add_argument("--log", type=Path, default=Path(tempfile.gettempdir()) / "matrix.log")
    parser.add_argument("--show", action="store_true", help="print the table, run nothing")
    args = parser.parse_args()
    if args.show:
        print(markdown(json.loads(TABLE.read_text())))
        return 0
    failures = 0
    with tempfile.TemporaryDirectory() as shared:
        tree = Path(shared, "tree")
        run("git", "clone", "--quiet", ROOT, tree, log=args.log)
        for version in SUPPORTED:
            if version.torch in args.torch:
                with tempfile.TemporaryDirectory() as folder:
                    python = install(version, tree, Path(folder), args.log)
                    found = row(python, tree, args.log)
                print(json.dumps(found), flush=True)
                _write(found)
                failures += found["failed"] + found["error"]
    return int(failures > 0)


def _write(found: dict[str, Any]) -> None:
    """Enter a row into the committed table, in place of an earlier one of the same version."""
    rows = json.loads(TABLE.read_text())["rows"] if TABLE.exists() else []
    minor = _minor(found["torch"])
    rows = [*(row for row in rows if _minor(row["torch"]) != minor), found]
    rows.sort(key=lambda row: _minor(row["torch"]))
    document = {"command": "python -m tests.matrix", "folders": TESTS, "rows": rows}
    TABLE.write_text(json.dumps(document, indent=1) + "\n")


def _minor(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")[:2]))


COLUMNS = ("torch", "triton", "numpy", "python", "passed", "failed", "skipped", "date", "commit")


def markdown(document: dict[str, Any]) -> str:
    """The table as docs/building.md shows it."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + " --- |" * len(COLUMNS)]
    for row in document["rows"]:
        lines.append("| " + " | ".join(str(row[name]) for name in COLUMNS) + " |")
    cpus = sorted({row["cpu"] for row in document["rows"]})
    return "\n".join([*lines, "", f"`{document['command']}`, on {', '.join(cpus)}"])


def _processor() -> str:
    try:
        names = re.findall(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.M)
    except OSError:
        names = []
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    sys.exit(main())
