"""Runs of the command that are killed from outside, at any moment, and gone on with."""

from __future__ import annotations

import multiprocessing
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from garevla.data.synthetic import PSEUDO_CAPTION_FILE
from garevla.training import TrainConfig
from garevla.utils.files import write_text
from tests.training.runs import assert_same_end, train_by_command

MODES = ("gare", "discovla", "gare+discovla")
KILLS = 3


# Processes that have imported everything already, but share nothing with this one.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["garevla.training.loop", "tests.training.runs"])


def run_command(config: TrainConfig, kill_after: int | None = None) -> int:
    """Train in a process of its own; its exit code.

    Args:
        config: the settings.
        kill_after: bytes of the log, written by this process, after which it is killed.
    """
    folder = config.run.output_dir
    folder.mkdir(exist_ok=True)
    settings = folder.with_suffix(".yaml")
    write_text(settings, yaml.safe_dump(config.as_dict()))
    log = folder / "metrics.jsonl"
    before = log.read_bytes() if log.exists() else b""
    process = PROCESSES.Process(target=train_by_command, args=(str(settings),))
    process.start()
    while process.is_alive():
        if kill_after is not None and log.exists():
            now = log.read_bytes()
            # A resumed run cuts the log back to its checkpoint, and goes on from there.
            if now != before and len(now) >= kill_after:
                process.kill()
        time.sleep(0.002)
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("mode", MODES)
def test_killed_at_any_moment_and_resumed(
    make_config: Callable[..., TrainConfig], dataset: Path, mode: str, num_workers: int
) -> None:
    def config(name: str) -> TrainConfig:
        captions = dataset / "annotations" / PSEUDO_CAPTION_FILE
        return make_config(
            name,
            data={
                "max_frames": 8,
                "num_workers": num_workers,
                "keep_in_memory": False,
                "pseudo_captions": None if mode == "gare" else str(captions),
            },
            model={
                "mode": mode,
                "psi_dropout_mode": "pair",
                "vision_fusion_blocks": 1,
                "text_fusion_blocks": 1,
            },
            run={"save_every_steps": 3, "resume": True},
        )

    whole, killed = config("whole"), config("killed")
    assert run_command(whole) == 0
    length = (whole.run.output_dir / "metrics.jsonl").stat().st_size
    moments = random.Random(f"{mode} {num_workers}")
    kills = 0
    for _ in range(KILLS):
        kills += run_command(killed, kill_after=moments.randrange(length)) != 0
    assert kills
    assert run_command(killed) == 0
    assert_same_end(whole, killed)
    assert not list(killed.run.output_dir.glob("*.tmp"))
