"""What a bug report needs to know of this machine: ``python -m garevla.utils.env [--json]``."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

_OPTIONAL_PACKAGES = (
    "av",
    "decord",
    "jsonargparse",
    "matplotlib",
    "open_clip_torch",
    "pillow",
    "qdrant-client",
    "scenedetect",
    "torchvision",
    "tqdm",
    "usearch",
)


def collect() -> dict[str, Any]:
    """Collect versions, processor, CUDA devices and backends.

    Needs torch and numpy only and never raises: what cannot be found out is a string that starts
    with ``"unknown"`` and says why. Packages that are absent are ``"not installed"``.

    Returns:
        A dictionary that JSON can hold, with keys ``garevla``, ``python``, ``platform``,
        ``packages``, ``optional_packages``, ``cpu``, ``cuda``, ``native_build`` and ``backends``.
    """
    return {
        "garevla": _probe(_garevla_version),
        "python": platform.python_version(),
        "platform": _probe(platform.platform),
        "packages": {
            "torch": _probe(_torch_version),
            "triton": _package_version("triton"),
            "numpy": _package_version("numpy"),
        },
        "optional_packages": {name: _package_version(name) for name in _OPTIONAL_PACKAGES},
        "cpu": {
            "model": _probe(_cpu_model),
            "cores": os.cpu_count(),
            "usable_cores": _probe(_usable_cores),
            "torch_threads": _probe(_torch_threads),
            "products": _probe(_products),
        },
        "cuda": _probe(_cuda),
        "native_build": _probe(_native_build),
        "backends": _probe(_backends),
    }


def format_report(report: dict[str, Any]) -> str:
    """Format the result of :func:`collect` as plain text, one fact a line."""
    return "\n".join(_lines(report, indent=""))


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the report; ``--json`` prints it for machines."""
    parser = argparse.ArgumentParser(
        prog="garevla env", description="Print versions, devices and backends for a bug report."
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of plain text")
    options = parser.parse_args(arguments)
    report = collect()
    print(json.dumps(report, indent=2) if options.json else format_report(report))


def _probe(question: Callable[[], Any]) -> Any:
    # A half-broken installation is what these reports are for: one failed answer must not
    # hide the others.
    try:
        return question()
    except Exception as error:
        return f"unknown ({type(error).__name__}: {error})"


def _package_version(name: str) -> str:
    def version() -> str:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            return "not installed"

    return _probe(version)


def _garevla_version() -> str:
    import garevla

    return garevla.__version__


def _torch_version() -> str:
    import torch

    # Unlike the package's version, it names the CUDA build.
    return str(torch.__version__)


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine() or "unknown"


def _usable_cores() -> int:
    # Containers and job schedulers often allow fewer cores than the machine has.
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _torch_threads() -> int:
    import torch

    return torch.get_num_threads()


def _products() -> dict[str, str]:
    from garevla.ops.products import library, rounds_to_bfloat16

    rounds = rounds_to_bfloat16()
    return {
        "float32": {"torch": "PyTorch's own", "onednn": "oneDNN"}[library()],
        "bfloat16": "operands rounded" if rounds else "exact, as float32",
    }


def _cuda() -> dict[str, Any]:
    import torch

    return {
        "built_for": torch.version.cuda or "no CUDA in this torch",
        "driver": _probe(_driver_version),
        "available": _probe(torch.cuda.is_available),
        "devices": _probe(_cuda_devices),
    }


def _driver_version() -> str:
    command = shutil.which("nvidia-smi")
    if command is None:
        return "not found (no nvidia-smi)"
    query = [command, "--query-gpu=driver_version", "--format=csv,noheader"]
    result = subprocess.run(query, capture_output=True, text=True, timeout=20, check=False)
    if result.returncode != 0:
        message = (result.stderr or result.stdout).strip()
        return f"unknown (nvidia-smi failed: {message})"
    return ", ".join(sorted(set(result.stdout.split())))


def _cuda_devices() -> list[dict[str, Any]]:
    import torch

    if not torch.cuda.is_available():
        return []
    devices = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        devices.append(
            {
                "name": properties.name,
                "compute_capability": f"{properties.major}.{properties.minor}",
                "memory_gib": round(properties.total_memory / 2**30, 1),
            }
        )
    return devices


def _native_build() -> dict[str, Any]:
    from garevla.ops.native_library import CUDA_UNAVAILABLE, UNAVAILABLE, build_report

    runs = {
        name: "yes" if reason is None else f"no: {reason}"
        for name, reason in (("runs", UNAVAILABLE), ("cuda_runs", CUDA_UNAVAILABLE))
    }
    return (build_report() or {"native": "never tried"}) | runs


def _backends() -> dict[str, str]:
    from garevla.ops.backends import backend_status

    return {
        name: "available" if reason is None else f"not available: {reason}"
        for name, reason in backend_status().items()
    }


def _lines(value: dict[str, Any], indent: str) -> list[str]:
    lines = []
    for key, entry in value.items():
        if isinstance(entry, dict):
            lines.append(f"{indent}{key}:")
            lines += _lines(entry, indent + "  ")
        elif isinstance(entry, list) and all(isinstance(item, str) for item in entry):
            lines.append(f"{indent}{key}: {', '.join(entry) or 'none'}")
        elif isinstance(entry, list):
            lines.append(f"{indent}{key}:")
            for number, item in enumerate(entry):
                facts = ", ".join(f"{name} {fact}" for name, fact in item.items())
                lines.append(f"{indent}  {number}: {facts}")
        else:
            lines.append(f"{indent}{key}: {'none' if entry is None else entry}")
    return lines


if __name__ == "__main__":
    main()
