from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from garevla.data.synthetic import SyntheticConfig, generate_dataset

pytest.importorskip("av")
clips = importlib.import_module("tests.data.clips")

WriteVideo = Callable[..., Path]


@pytest.fixture(scope="session")
def frame_numbers() -> Callable[[np.ndarray], list[int]]:
    """Read the indices back from frames (n, height, width, 3)."""
    return clips.frame_numbers


@pytest.fixture(scope="session")
def write_video() -> WriteVideo:
    """Write a video of numbered frames; ``noise`` makes it large enough to cut."""
    return clips.write_clip


@pytest.fixture(scope="session")
def cut() -> Callable[..., Path]:
    """Keep a part of a file's bytes."""

    def cut_file(path: Path, share: float) -> Path:
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * share)])
        return path

    return cut_file


@pytest.fixture(scope="session")
def small_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generated data set: 10 training videos of 2 or 3 captions, 6 test videos."""
    root = tmp_path_factory.mktemp("small_dataset")
    generate_dataset(root, num_train=10, num_test=6, seed=3, config=SyntheticConfig(frame_size=32))
    return root
