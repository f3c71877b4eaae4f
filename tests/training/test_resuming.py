"""A run that was interrupted goes on to the same end; one that is another's is not gone on with."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from garevla.training import CheckpointError, ConfigError, TrainConfig, load_model, train
from garevla.training.checkpoint import load_checkpoint, save_checkpoint
from garevla.training.log import read_metrics
from tests.training.runs import (
    STEPS_PER_EPOCH,
    MakeConfig,
    assert_same_end,
    final_state,
    train_until,
    without_times,
)

pytestmark = pytest.mark.usefixtures("no_curves")


KILLED_RUN = """
import json, os, signal, sys
import torch
from garevla.training import TrainConfig, loop
from garevla.training.config import config_from_dict

torch.set_num_threads(1)
clip, calls = loop.clip_grad_norm_, 0

def clip_or_die(*arguments):
    global calls
    calls += 1
    if calls == {kill_at}:
        os.kill(os.getpid(), signal.SIGKILL)
    return clip(*arguments)

loop.clip_grad_norm_ = clip_or_die
loop.train(config_from_dict(TrainConfig, json.loads(sys.argv[1])))
"""


@pytest.mark.parametrize("psi", ["gap_mlp", "cross_attention"])
def test_an_interrupted_run_draws_the_same_masks(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, psi: str
) -> None:
    """Dropout per pair: the masks' seeds come back with the random state, and are in the log."""
    model = {"psi": psi, "psi_dropout_mode": "pair"}
    optimizer = {"epochs": 1}
    whole = make_config("whole", model=model, optimizer=optimizer)
    train(whole)
    config = make_config("cut", model=model, optimizer=optimizer, run={"save_every_steps": 1})
    train_until(config, monkeypatch, "clip_grad_norm_", 3)
    config.run.resume = True
    train(config)
    assert_same_end(whole, config)
    seeds = [record["dropout_seed"] for record in without_times(config) if "loss" in record]
    assert len(set(seeds)) == len(seeds) == STEPS_PER_EPOCH


def test_killed_in_mid_epoch_and_resumed(
    make_config: MakeConfig, uninterrupted: TrainConfig
) -> None:
    config = make_config("killed", run={"save_every_steps": 2, "resume": True})
    # Step 8 is in the second epoch; the last checkpoint is from step 6.
    result = subprocess.run(
        [sys.executable, "-c", KILLED_RUN.format(kill_at=8), json.dumps(config.as_dict())],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == -signal.SIGKILL, result.stderr
    assert final_state(config)["progress"]["step"] == 6
    train(config)
    assert_same_end(uninterrupted, config)


@pytest.mark.parametrize(
    ("function", "call"),
    [
        ("clip_grad_norm_", 1),  # before the first checkpoint
        ("clip_grad_norm_", 3),  # in mid-epoch, after a checkpoint
        ("evaluate", 1),  # with steps logged after the last checkpoint
        ("draw_curves", 1),  # at the very end
        ("save_checkpoint", 3),  # before best.pt
        ("save_checkpoint", 4),  # between best.pt and last.pt
    ],
)
def test_crashed_anywhere_and_resumed(
    make_config: MakeConfig,
    uninterrupted: TrainConfig,
    monkeypatch: pytest.MonkeyPatch,
    function: str,
    call: int,
) -> None:
    config = make_config("crashed", run={"save_every_steps": 2, "resume": True})
    train_until(config, monkeypatch, function, call)
    # What happened to the random state meanwhile must not matter.
    torch.rand(7)
    train(config)
    assert_same_end(uninterrupted, config)


def test_resuming_a_finished_run_returns_its_figures(finished: TrainConfig) -> None:
    before = (finished.run.output_dir / "metrics.jsonl").read_bytes()
    finished.run.resume = True
    metrics = train(finished)
    assert (finished.run.output_dir / "metrics.jsonl").read_bytes() == before
    last = read_metrics(finished.run.output_dir / "metrics.jsonl")[-1]
    assert metrics["text_to_video"].as_dict() == last["text_to_video"]


def as_an_earlier_version_wrote_it(path: Path) -> None:
    """Under the old names, and without the settings that came later."""
    state = load_checkpoint(path)
    state["config"]["optimiser"] = state["config"].pop("optimizer")
    for name in ("psi", "psi_hidden_dim", "psi_activation"):
        del state["config"]["model"][name]
    if path.name == "last.pt":
        state["optimiser"] = state.pop("optimizer")
    save_checkpoint(path, state)


def test_a_run_of_an_earlier_version_is_resumed(
    make_config: MakeConfig, uninterrupted: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config("old", run={"save_every_steps": 2, "resume": True})
    train_until(config, monkeypatch, "evaluate", 2)
    as_an_earlier_version_wrote_it(config.run.output_dir / "last.pt")
    as_an_earlier_version_wrote_it(config.run.output_dir / "best.pt")
    train(config)
    assert_same_end(uninterrupted, config)


def test_a_model_of_an_earlier_version_is_loaded(finished: TrainConfig) -> None:
    path = finished.run.output_dir / "best.pt"
    weights = load_model(path)[0].state_dict()
    as_an_earlier_version_wrote_it(path)
    model, config = load_model(path)
    assert config.optimizer == finished.optimizer
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def test_resuming_with_other_settings(make_config: MakeConfig, finished: TrainConfig) -> None:
    config = make_config(
        "finished", run={"resume": True}, optimizer={"epochs": 3}, data={"num_workers": 1}
    )
    with pytest.raises(ConfigError, match=r"optimizer\.epochs: 2 -> 3$"):
        train(config)


def test_resuming_with_other_captions(finished: TrainConfig, dataset: Path, tmp_path: Path) -> None:
    annotations = tmp_path / "annotations"
    annotations.mkdir()
    for file in (dataset / "annotations").iterdir():
        text = file.read_text()
        (annotations / file.name).write_text(text.replace(" moves", " walks"))
    finished.run.resume = True
    finished.data.annotation_dir = annotations
    with pytest.raises(CheckpointError, match="other captions"):
        train(finished)


def test_resuming_from_a_truncated_checkpoint(finished: TrainConfig) -> None:
    path = finished.run.output_dir / "last.pt"
    path.write_bytes(path.read_bytes()[:-1000])
    finished.run.resume = True
    with pytest.raises(CheckpointError, match=r"last\.pt is not a readable checkpoint"):
        train(finished)


def test_resuming_from_another_models_checkpoint(finished: TrainConfig) -> None:
    path = finished.run.output_dir / "last.pt"
    state = load_checkpoint(path)
    del state["model"]["encoder.clip.logit_scale"]
    save_checkpoint(path, state)
    finished.run.resume = True
    with pytest.raises(
        CheckpointError, match=r"another model: 1 of \d+ weights are absent, .*logit_scale"
    ):
        train(finished)
    with pytest.raises(CheckpointError, match="another model"):
        load_model(path)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("schedule", None, r"last\.pt lacks 'schedule'"),
        ("progress", {"epoch": 1, "pace": 2}, "not one to go on from: .*pace"),
        ("optimizer", {"state": {}}, "another optimizer"),
        ("model", 5, "another model: it has no weights by name"),
        ("config", 5, r"last\.pt: not the settings that TrainConfig takes: 5"),
    ],
)
def test_resuming_from_what_is_no_state(
    finished: TrainConfig, key: str, value: object, message: str
) -> None:
    path = finished.run.output_dir / "last.pt"
    state = load_checkpoint(path)
    del state[key]
    save_checkpoint(path, state if value is None else {**state, key: value})
    finished.run.resume = True
    with pytest.raises(CheckpointError, match=message):
        train(finished)


def test_what_a_killed_run_left_unfinished_is_removed(
    make_config: MakeConfig, finished: TrainConfig
) -> None:
    folder = finished.run.output_dir
    (folder / "last.pt.0123456789abcdef.tmp").write_bytes(b"half a checkpoint")
    finished.run.resume = True
    train(finished)
    assert not list(folder.glob("*.tmp"))
