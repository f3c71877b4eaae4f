from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["videos", "annotations", "checkpoints", "settings"])
def test_a_few_trials_with_damaged_and_hostile_files(kind):
    for package in ("av", "hypothesis"):
        pytest.importorskip(package)
    command = [sys.executable, "-m", "tests.fuzz", "--minutes", "0.1", "--kinds", kind]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{kind}, " in done.stdout or f"{kind}: " in done.stdout
    assert done.stdout.endswith(": 0 failures\n")
