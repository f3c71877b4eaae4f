"""Runs the tests that depend on torch, Triton and the compiler with every supported version.

    python -m tests.matrix [--torch 2.11 2.15 …] [--json tests/matrix.json]

Makes one environment per version in a temporary folder, from a clone of the committed tree, and
removes it before the next: one takes six gigabytes. Needs network, git and a compiler, and nothing
installed. A row says what was installed and what pytest counted.
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
REQUIREMENTS = ("pytest>=8", "setuptools>=77", "ninja>=1.11")
VERSIONS = "import torch, numpy; print(torch.__version__, numpy.__version__, end=' ')"
TRITON = "import triton; print(triton.__version__)"


@dataclass(frozen=True)
class Version:
    """A torch and what goes with it; its own requirements bring Triton."""

    torch: str
    torchvision: str
    numpy: str = ""


SUPPORTED = (
    # Triton 3.6's interpreter needs an older numpy: it makes numbers of arrays of one element.
    Version("2.11", "0.26", "<2.4"),
    Version("2.12", "0.27"),
    Version("2.13", "0.28"),
    Version("2.14", "0.29"),
    Version("2.15", "0.29"),
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


def row(version: Version, folder: Path, log: Path) -> dict[str, Any]:
    """Install one version into ``folder`` and test with it."""
    tree, python = folder / "tree", folder / "environment/bin/python"
    run("git", "clone", "--quiet", ROOT, tree, log=log)
    commit = run("git", "-C", tree, "rev-parse", "--short", "HEAD", log=log).strip()
    run(sys.executable, "-m", "venv", folder / "environment", log=log)
    wanted = [f"torch=={version.torch}.*", f"torchvision=={version.torchvision}.*"]
    wanted += [f"numpy{version.numpy}", *REQUIREMENTS]
    pip = (python, "-m", "pip", "install", "--quiet")
    skip = os.environ | {"GAREVLA_NATIVE": "skip"}
    run(*pip, *wanted, "--editable", f"{tree}[video]", log=log, cwd=folder, env=skip)
    environment = os.environ | {"GAREVLA_CUDA_ARCHITECTURES": "90"}
    run(python, "setup.py", "--quiet", "build_ext", "--inplace", log=log, cwd=tree, env=environment)
    torch, numpy, triton = run(python, "-c", VERSIONS + "\n" + TRITON, log=log, cwd=tree).split()
    build = json.loads((tree / "garevla/_native_build.json").read_text())
    start = time.monotonic()
    paths = [tree / "tests" / name for name in TESTS if (tree / "tests" / name).exists()]
    printed = run(python, "-m", "pytest", "-q", *paths, log=log, cwd=tree)
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
        "commit": commit,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    known = [version.torch for version in SUPPORTED]
    parser.add_argument("--torch", nargs="+", choices=known, default=known, metavar="VERSION")
    parser.add_argument("--json", type=Path, help="write the table here, row by row")
    parser.add_argument("--log", type=Path, default=Path(tempfile.gettempdir()) / "matrix.log")
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for version in SUPPORTED:
        if version.torch in args.torch:
            with tempfile.TemporaryDirectory() as folder:
                rows.append(row(version, Path(folder), args.log))
            print(json.dumps(rows[-1]), flush=True)
            table = {
                "command": "python -m tests.matrix",
                "date": time.strftime("%Y-%m-%d"),
                "cpu": _processor(),
                "python": platform.python_version(),
                "tests": TESTS,
                "rows": rows,
            }
            if args.json:
                args.json.write_text(json.dumps(table, indent=1) + "\n")
    return int(any(row["failed"] or row["error"] for row in rows))


def _processor() -> str:
    try:
        names = re.findall(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.M)
    except OSError:
        names = []
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    sys.exit(main())
