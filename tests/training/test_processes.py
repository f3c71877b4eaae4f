"""Training by several processes: the weights of one."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from torch import distributed

from garevla.data.sampler import ShardedBatchSampler, UniqueVideoBatchSampler
from garevla.data.synthetic import PSEUDO_CAPTION_FILE
from garevla.training import TrainConfig, build_model, train
from garevla.training.checkpoint import load_checkpoint
from garevla.utils.files import write_text
from tests.helpers import relative_error
from tests.training.runs import without_times

processes = pytest.mark.skipif(
    not distributed.is_available(), reason="this torch has no torch.distributed"
)
MODES = ("gare", "discovla", "gare+discovla")


def start(config: TrainConfig, count: int) -> subprocess.Popen[str]:
    """``torchrun --nproc_per_node COUNT -m garevla train --config SETTINGS``."""
    folder = config.run.output_dir
    folder.mkdir(exist_ok=True)
    settings = folder.with_suffix(".yaml")
    write_text(settings, yaml.safe_dump(config.as_dict()))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command = ["--nproc_per_node", str(count), "-m", "garevla", "train", "--config", str(settings)]
    return subprocess.Popen(
        [*torchrun, *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def run(config: TrainConfig, count: int) -> str:
    process = start(config, count)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    return output


def weights(config: TrainConfig) -> dict[str, torch.Tensor]:
    return load_checkpoint(config.run.output_dir / "last.pt")["model"]


def settings(dataset: Path, mode: str) -> dict[str, dict]:
    captions = dataset / "annotations" / PSEUDO_CAPTION_FILE
    return {
        "data": {"max_frames": 8, "pseudo_captions": None if mode == "gare" else str(captions)},
        "model": {
            "mode": mode,
            "psi_dropout_mode": "pair",
            "vision_fusion_blocks": 1,
            "text_fusion_blocks": 1,
        },
        "run": {"save_every_steps": 3, "resume": True},
    }


def assert_same_weights(one: TrainConfig, other: TrainConfig) -> None:
    """What training changed is the same.

    Of all parameters together: of those without a gradient, such as keys' biases, AdamW makes large
    steps out of rounding.
    """
    torch.manual_seed(one.run.seed)
    before = build_model(one).state_dict()
    want, found = weights(one), weights(other)
    assert want.keys() == found.keys()
    names = [name for name, value in want.items() if value.is_floating_point()]
    changes = [
        torch.cat([(after[name] - before[name]).flatten() for name in names])
        for after in (want, found)
    ]
    assert changes[0].norm() > 0.1
    assert relative_error(changes[1], changes[0]) < 3e-3


@processes
@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_two_processes_end_with_the_weights_of_one(
    make_config: Callable[..., TrainConfig], dataset: Path, mode: str
):
    alone, together = (make_config(name, **settings(dataset, mode)) for name in ("one", "two"))
    metrics = train(alone)
    output = run(together, 2)
    assert output.count("written to") == 1
    assert_same_weights(alone, together)
    recall = f"{metrics['text_to_video'].recall_at_1:.1f}"
    assert recall in output
    for mine, its in zip(without_times(together), without_times(alone), strict=True):
        assert mine.keys() == its.keys()
        if mine["kind"] == "train":
            assert mine["loss"] == pytest.approx(its["loss"], rel=1e-4)
            assert mine["grad_norm"] == pytest.approx(its["grad_norm"], rel=1e-3)


@processes
@pytest.mark.slow
def test_one_process_is_killed_and_the_run_resumed(
    make_config: Callable[..., TrainConfig], dataset: Path
):
    options = settings(dataset, "gare")
    options["data"]["keep_in_memory"] = False
    options["optimizer"] = {"epochs": 4}
    alone, together = (make_config(name, **options) for name in ("one", "two"))
    train(alone)
    process = start(together, 2)
    log = together.run.output_dir / "metrics.jsonl"
    while process.poll() is None and not (log.exists() and log.read_text().count("\n") >= 6):
        time.sleep(0.01)
    workers = subprocess.run(
        ["pgrep", "-P", str(process.pid)], capture_output=True, text=True
    ).stdout.split()
    assert len(workers) == 2
    subprocess.run(["kill", f"-{signal.SIGKILL.value}", workers[1]], check=True)
    output, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "Signal 9 (SIGKILL)" in output
    # Another number of processes goes on to the same weights.
    train(together)
    assert_same_weights(alone, together)


@processes
@pytest.mark.slow
def test_what_the_first_process_meets_ends_all(
    make_config: Callable[..., TrainConfig], finished: TrainConfig
):
    finished.run.resume = False
    process = start(finished, 2)
    output, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "holds a run already" in output


def test_parts_of_batches():
    whole = UniqueVideoBatchSampler([f"video{i // 2}" for i in range(26)], 7, seed=3)
    parts = [ShardedBatchSampler(whole, rank, 3) for rank in range(3)]
    for part in parts:
        part.set_epoch(2, 1)
        assert len(part) == len(whole)
    whole.set_epoch(2, 1)
    for batch, *own in zip(whole, *parts, strict=True):
        assert [index for part in own for index in part] == batch
        assert max(map(len, own)) - min(map(len, own)) <= 1


@processes
def test_more_processes_than_pairs(make_config: Callable[..., TrainConfig], monkeypatch):
    monkeypatch.setattr("garevla.training.loop.join_processes", _many)
    with pytest.raises(Exception, match="do not go round 9 processes"):
        train(make_config("run"))


class _many:
    """Nine processes, as far as one can tell before the first step."""

    def __init__(self, device_name: str) -> None:
        pass

    def __enter__(self) -> tuple[object, torch.device]:
        from garevla.utils.processes import Processes

        many = Processes(0, 9)
        object.__setattr__(many, "_tell", lambda failure: None)
        return many, torch.device("cpu")

    def __exit__(self, *_: object) -> None:
        pass
