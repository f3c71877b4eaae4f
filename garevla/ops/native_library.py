"""The compiled libraries of the ``native`` backend: where they are, and why one cannot be used."""

from __future__ import annotations

import ctypes
import json
from pathlib import Path
from typing import Any

import torch

from garevla.utils.versions import version_numbers

_FOLDER = Path(__file__).parents[1]
LIBRARY = _FOLDER / "_native.so"
CUDA_LIBRARY = _FOLDER / "_native_cuda.so"
BUILD_REPORT = _FOLDER / "_native_build.json"

_OPERATORS = (
    "pair_similarity",
    "pair_terms",
    "pair_terms_backward",
    "pair_statistics",
    "pair_statistics_backward",
    "direction",
)
_FUNCTIONS = ("garevla_take_onednn_from", "garevla_round_products", "garevla_torch_rounds")


def _load() -> str | None:
    """Load the library; the reason where that is impossible."""
    if not LIBRARY.exists():
        return build_report().get("reason") or "the extension was not built (docs/building.md)"
    oldest = build_report().get("oldest_torch") or "0"
    if version_numbers(torch.__version__) < version_numbers(oldest):
        return (
            f"{LIBRARY.name} is for torch {oldest} and newer, and this is torch {torch.__version__}"
        )
    try:
        torch.ops.load_library(str(LIBRARY))
        for name in _OPERATORS:
            getattr(torch.ops.garevla, name)
        for name in _FUNCTIONS:
            c_function(name)
    except (OSError, AttributeError) as error:
        return f"{LIBRARY.name} cannot be used: {error}; build it again (docs/building.md)"
    return None


def _load_cuda() -> str | None:
    """Load the CUDA kernels; the reason where that is impossible."""
    if UNAVAILABLE is not None:
        return UNAVAILABLE
    if not CUDA_LIBRARY.exists():
        return build_report().get("cuda_reason") or "see docs/building.md"
    if torch.version.cuda is None:
        return "this torch is without CUDA"
    built_for = build_report().get("cuda_version") or torch.version.cuda
    if version_numbers(built_for)[0] != version_numbers(torch.version.cuda)[0]:
        return f"they are for CUDA {built_for}, and this torch is for CUDA {torch.version.cuda}"
    try:
        torch.ops.load_library(str(CUDA_LIBRARY))
    except OSError as error:
        return f"{CUDA_LIBRARY.name} cannot be used: {error}"
    return None


def build_report() -> dict[str, Any]:
    """What the build left behind: what was built, for what, and what was not and why."""
    try:
        return json.loads(BUILD_REPORT.read_text())
    except FileNotFoundError:
        return {}


def c_function(name: str) -> Any:
    """A function of the library's that is no operator; no arguments' types are known."""
    return getattr(ctypes.CDLL(str(LIBRARY)), name)


UNAVAILABLE = _load()
"""Why the library cannot be used here, or None."""

CUDA_UNAVAILABLE = _load_cuda()
"""Why the CUDA kernels cannot, or None."""
