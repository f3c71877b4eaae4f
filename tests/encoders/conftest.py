from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def encoder(tmp_path: Path) -> Any:
    """A small one of DiscoVLA's."""
    small_discovla = importlib.import_module("tests.encoders.small_discovla")
    return small_discovla.build(small_discovla.write_config(tmp_path))
