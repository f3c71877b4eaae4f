from __future__ import annotations

from pathlib import Path

import pytest
import torch

import garevla

_REASON = garevla.backend_status("cuda" if torch.cuda.is_available() else "cpu")["triton"] or ""
# An older Triton need not even import the kernels.
collect_ignore_glob = ["test_*.py"] if "the kernels are for Triton" in _REASON else []


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where there is a GPU, the tests of kernels run on it, and belong to ``-m gpu``."""
    if torch.cuda.is_available():
        for item in items:
            if Path(__file__).parent in item.path.parents:
                item.add_marker("gpu")
