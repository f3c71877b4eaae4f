from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.fuzz.layouts import FOLDERS, try_folder, write_mutated


@pytest.mark.parametrize("name", FOLDERS)
def test_annotation_files_that_are_whole_or_damaged(name: str, tmp_path: Path) -> None:
    outcomes = []
    for trial in range(50):
        folder = tmp_path / str(trial)
        folder.mkdir()
        write_mutated(folder, name, np.random.default_rng(trial))
        outcomes.append(try_folder(folder, name))
    assert set(outcomes) == {"read", "refused by name"}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["videos", "annotations", "layouts", "checkpoints", "settings"])
def test_a_few_trials_with_damaged_and_hostile_files(kind):
    for package in ("av", "hypothesis"):
        pytest.importorskip(package)
    command = [sys.executable, "-m", "tests.fuzz", "--minutes", "0.1", "--kinds", kind]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{kind}, " in done.stdout or f"{kind}: " in done.stdout
    assert done.stdout.endswith(": 0 failures\n")
