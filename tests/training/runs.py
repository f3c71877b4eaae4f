"""Runs, and what tests ask of finished ones."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch

from garevla import cli
from garevla.training import TrainConfig, loop, train
from garevla.training.checkpoint import load_checkpoint
from garevla.training.log import read_metrics

MakeConfig = Callable[..., TrainConfig]
STEPS_PER_EPOCH = 4  # 32 training captions, 8 a step


class Crash(BaseException):
    """Ends a run as suddenly as can be done within a process."""


def train_until(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch, function: str, call: int
) -> None:
    """Train up to the ``call``-th call of a function of the loop's, where the run crashes."""
    original = getattr(loop, function)
    calls = 0

    def crash(*arguments: object, **options: object) -> object:
        nonlocal calls
        calls += 1
        if calls == call:
            raise Crash
        return original(*arguments, **options)

    monkeypatch.setattr(loop, function, crash)
    with pytest.raises(Crash):
        train(config)
    monkeypatch.setattr(loop, function, original)


def train_by_command(settings: str) -> None:
    """``garevla train --config SETTINGS``, in the process that it is called in."""
    torch.set_num_threads(1)
    # As in a process from a shell: else data-loading processes would outlive one that is killed.
    multiprocessing.set_start_method("fork", force=True)
    sys.exit(cli.main(["train", "--config", settings]))


def final_state(config: TrainConfig) -> dict[str, Any]:
    return load_checkpoint(config.run.output_dir / "last.pt")


def without_times(config: TrainConfig) -> list[dict[str, Any]]:
    """The log's records but for how long they took."""
    records = read_metrics(config.run.output_dir / "metrics.jsonl")
    for record in records:
        record.pop("seconds", None)
        record.pop("samples_per_second", None)
    return records


def assert_same_end(one: TrainConfig, other: TrainConfig) -> None:
    """Weights, optimizer, random state and log are the same, bit for bit."""
    expected, actual = final_state(one), final_state(other)
    assert expected["model"].keys() == actual["model"].keys()
    for name, value in expected["model"].items():
        assert torch.equal(value, actual["model"][name]), name
    for index, state in expected["optimizer"]["state"].items():
        for name, value in state.items():
            assert torch.equal(value, actual["optimizer"]["state"][index][name]), name
    assert expected["progress"] == actual["progress"]
    assert torch.equal(expected["random_state"]["cpu"], actual["random_state"]["cpu"])
    assert without_times(one) == without_times(other)
    best = [load_checkpoint(c.run.output_dir / "best.pt")["model"] for c in (one, other)]
    assert all(torch.equal(value, best[1][name]) for name, value in best[0].items())
