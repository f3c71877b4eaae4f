from __future__ import annotations

import dataclasses
import json
import math
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from garevla import BackendUnavailableError, DiscoVLALossOutput, Texts
from garevla.data import AnnotationError
from garevla.data.layouts.msrvtt import TEST_FILE
from garevla.encoders.pretrained import PretrainedWeightsError
from garevla.ops import backends
from garevla.ops.backends import Backend
from garevla.training import (
    CheckpointError,
    ConfigError,
    EvaluateConfig,
    RetrievalModel,
    TrainConfig,
    TrainingError,
    build_model,
    evaluate_checkpoint,
    load_model,
    loop,
    train,
)
from garevla.training.checkpoint import load_checkpoint, save_checkpoint
from garevla.training.curves import draw_curves
from garevla.training.log import read_metrics
from garevla.utils import locks
from garevla.utils.locks import InUseError, lock_folder
from tests.training.runs import assert_same_end, final_state, train_until, without_times

MakeConfig = Callable[..., TrainConfig]
STEPS_PER_EPOCH = 4  # 32 training captions, 8 a step

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


@pytest.fixture(autouse=True)
def _no_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing them takes longer than these runs."""
    monkeypatch.setattr(loop, "draw_curves", lambda records, path: None)


def test_a_run_and_what_it_writes(
    make_config: MakeConfig, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "draw_curves", draw_curves)
    config = make_config("run", evaluation={"at_start": True})
    with caplog.at_level("INFO", logger="garevla"):
        metrics = train(config)
    assert metrics.keys() == {"text_to_video", "video_to_text"}
    assert metrics["text_to_video"].num_queries == 8
    assert "epoch 2 of 2: R@1 text to video" in caplog.text

    folder = config.run.output_dir
    assert {file.name for file in folder.iterdir()} == {
        ".lock",
        "best.pt",
        "config.yaml",
        "curves.png",
        "last.pt",
        "metrics.jsonl",
    }
    records = read_metrics(folder / "metrics.jsonl")
    epoch = ["train"] * STEPS_PER_EPOCH + ["evaluation"]
    kinds = ["evaluation", *epoch, *epoch]
    assert [record["kind"] for record in records] == kinds
    steps = [record for record in records if record["kind"] == "train"]
    assert [record["step"] for record in steps] == list(range(1, 9))
    assert steps[3]["epoch"] == 1.0
    for record in steps:
        terms = ("loss", "contrastive", "bottleneck", "direction", "trust_region")
        assert all(math.isfinite(record[name]) for name in (*terms, "grad_norm", "logit_scale"))
        assert record["seconds"] > 0
        assert record["samples_per_second"] == pytest.approx(8 / record["seconds"])
        weighted = 1e-4 * record["bottleneck"] + 0.01 * (
            record["direction"] + record["trust_region"]
        )
        assert record["loss"] == pytest.approx(record["contrastive"] + weighted, rel=1e-4)
    assert steps[0]["learning_rate"]["new"] == 0.0
    assert steps[4]["learning_rate"]["new"] == pytest.approx(0.5e-3)
    assert records[-1]["text_to_video"] == metrics["text_to_video"].as_dict()
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_logged_terms_are_the_numbers_of_a_losss_output() -> None:
    output = DiscoVLALossOutput(
        loss=torch.tensor(3.0),
        contrastive=torch.tensor(2.0),
        frame=torch.tensor(1.0),
        distillation=None,
        similarity=torch.ones(1, 1),
    )
    assert loop._loss_terms(output) == {"loss": 3.0, "contrastive": 2.0, "frame": 1.0}


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


def test_training_reduces_the_loss(make_config: MakeConfig) -> None:
    config = make_config("run", optimizer={"epochs": 8}, model={"psi_dropout": 0.0})
    train(config)
    losses = [record["loss"] for record in without_times(config) if record["kind"] == "train"]
    assert sum(losses[-STEPS_PER_EPOCH:]) < 0.9 * sum(losses[:STEPS_PER_EPOCH])


def test_videos_are_corrected_and_found_again(make_config: MakeConfig) -> None:
    config = make_config("run", model={"corrects": "video"}, optimizer={"epochs": 1})
    figures = train(config)
    checkpoint = config.run.output_dir / "last.pt"
    model, _ = load_model(checkpoint)
    assert isinstance(model.encode_text(model.tokenize(["a red circle"])), Texts)
    again = evaluate_checkpoint(
        EvaluateConfig(checkpoint=checkpoint, num_workers=0, device="cpu"), progress=False
    )
    assert again.metrics == figures


def test_the_seed_decides(make_config: MakeConfig, uninterrupted: TrainConfig) -> None:
    again = make_config("again", run={"save_every_steps": 3})
    train(again)
    assert_same_end(uninterrupted, again)
    other = make_config("other", run={"seed": 1}, optimizer={"epochs": 1})
    train(other)
    assert without_times(other)[0]["loss"] != without_times(uninterrupted)[0]["loss"]


def test_workers_change_nothing(make_config: MakeConfig, uninterrupted: TrainConfig) -> None:
    config = make_config("workers", data={"num_workers": 2})
    train(config)
    assert_same_end(uninterrupted, config)


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


def test_a_run_is_not_overwritten(make_config: MakeConfig, finished: TrainConfig) -> None:
    with pytest.raises(ConfigError, match=r"holds a run already.*run\.resume"):
        train(make_config("finished"))


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


def test_two_runs_in_one_folder(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "_SECONDS", 0.1)
    config = make_config("run")
    with (
        lock_folder(config.run.output_dir),
        pytest.raises(InUseError, match=r"another process is writing into .*run: wait for its"),
    ):
        train(config)


def test_what_a_killed_run_left_unfinished_is_removed(
    make_config: MakeConfig, finished: TrainConfig
) -> None:
    folder = finished.run.output_dir
    (folder / "last.pt.0123456789abcdef.tmp").write_bytes(b"half a checkpoint")
    finished.run.resume = True
    train(finished)
    assert not list(folder.glob("*.tmp"))


@pytest.mark.parametrize(
    ("section", "settings", "error"),
    [
        ("model", {"name": "ViT-B-31"}, "unknown model 'ViT-B-31'"),
        ("model", {"psi_heads": 3}, "num_heads must divide dim"),
        ("model", {"context_length": 2000}, "context_length must be between"),
        ("loss", {"backend": "abacus"}, "backend must be 'auto' or one of"),
        ("run", {"output_dir": "{tmp_path}/file/run"}, "Not a directory"),
        ("run", {"init_from": "{tmp_path}/none.pt"}, r"checkpoint not found: .*none\.pt"),
        ("data", {"pseudo_captions": "{tmp_path}/none.json"}, r"none\.json does not exist"),
        ("data", {"train_split": "train-8k"}, "split must be one of"),
    ],
)
def test_settings_are_refused_before_videos_are_decoded(
    make_config: MakeConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    section: str,
    settings: dict,
    error: str,
) -> None:
    (tmp_path / "file").touch()
    settings = {
        name: value.format(tmp_path=tmp_path) if isinstance(value, str) else value
        for name, value in settings.items()
    }
    sections = {"data": {"check_videos": True}}
    sections.setdefault(section, {}).update(settings)
    config = make_config("run", **sections)

    def decode(*arguments: object, **options: object) -> None:
        raise AssertionError("videos are decoded")

    monkeypatch.setattr("garevla.data.check.try_decoding", decode)
    with pytest.raises((ValueError, OSError), match=error):
        train(config)


def test_a_backend_that_cannot_run_is_refused_first(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = Backend("broken", unavailable=lambda device: "it is broken", operations={})
    monkeypatch.setitem(backends._BACKENDS, "broken", backend)
    config = make_config("run", loss={"backend": "broken"})
    with pytest.raises(BackendUnavailableError, match="'broken' cannot run here: it is broken"):
        train(config)
    assert not config.run.output_dir.exists()


def test_a_test_file_that_is_wrong_is_refused_before_videos_are_decoded(
    make_config: MakeConfig, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    annotations = shutil.copytree(dataset / "annotations", tmp_path / "annotations")
    (annotations / TEST_FILE).write_text("video_id\nvideo1\n")
    data = {"annotation_dir": str(annotations), "check_videos": True}
    monkeypatch.setattr("garevla.data.check.try_decoding", None)
    with pytest.raises(AnnotationError, match="no column 'sentence'"):
        train(make_config("run", data=data))


def test_training_on_from_the_weights_of_a_run(
    make_config: MakeConfig, finished: TrainConfig
) -> None:
    origin = finished.run.output_dir / "last.pt"
    config = make_config("more", run={"init_from": str(origin)}, evaluation={"at_start": True})
    train(config)
    first = without_times(config)[0]
    assert first["step"] == 0
    # The first evaluation is the finished run's last.
    assert first["text_to_video"] == without_times(finished)[-1]["text_to_video"]
    assert final_state(config)["progress"]["step"] == 2 * STEPS_PER_EPOCH
    # The weights are needed once.
    origin.unlink()
    config.run.resume = True
    train(config)


@pytest.mark.parametrize("mode", ["gare", "discovla"])
def test_pretrained_weights_of_a_run_are_its_clip(
    make_config: MakeConfig, finished: TrainConfig, mode: str
) -> None:
    path = finished.run.output_dir / "best.pt"
    blocks = {"vision_fusion_blocks": 1, "text_fusion_blocks": 1}
    model = build_model(make_config("new", model={"mode": mode, "pretrained": str(path), **blocks}))
    weights = load_checkpoint(path)["model"]
    for name, value in model.encoder.clip.state_dict().items():
        assert torch.equal(value, weights[f"encoder.clip.{name}"]), name


def test_pretrained_weights_that_are_none(
    make_config: MakeConfig, finished: TrainConfig, tmp_path: Path
) -> None:
    def refusal(path: Path, name: str = finished.model.name) -> str:
        with pytest.raises(PretrainedWeightsError) as caught:
            build_model(make_config("new", model={"pretrained": str(path), "name": name}))
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 500
        return str(caught.value)

    path = finished.run.output_dir / "best.pt"
    assert "does not hold weights of 'tiny'" in refusal(path, "tiny")
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)
    assert "it is damaged" in refusal(path)
    torch.save({"weights": Path("x")}, tmp_path / "evil.pt")
    assert "might run code and is not loaded" in refusal(tmp_path / "evil.pt")
    torch.save({"weight": torch.ones(1)}, tmp_path / "other.pt")
    assert "Missing key(s) in state_dict" in refusal(tmp_path / "other.pt")
    (tmp_path / "text.pt").write_text("text")
    refusal(tmp_path / "text.pt")


def test_training_on_from_what_is_no_such_run(
    make_config: MakeConfig, finished: TrainConfig, tmp_path: Path
) -> None:
    origin = str(finished.run.output_dir / "best.pt")
    for model in (
        {"temporal_layers": 0},
        {"mode": "discovla", "text_fusion_blocks": 1, "vision_fusion_blocks": 1},
    ):
        with pytest.raises(
            CheckpointError, match=r"run\.init_from, .*best\.pt: .*another model: "
        ) as caught:
            train(make_config("other", model=model, run={"init_from": origin}))
        assert "\n" not in str(caught.value)
    (tmp_path / "text.pt").write_text("no checkpoint")
    with pytest.raises(CheckpointError, match=r"text\.pt is not a readable"):
        train(make_config("other", run={"init_from": str(tmp_path / "text.pt")}))


def test_loss_that_is_not_finite_stops_the_run(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config("run")
    original = RetrievalModel.forward
    calls = 0

    def forward(self: RetrievalModel, *arguments: torch.Tensor) -> object:
        nonlocal calls
        calls += 1
        output = original(self, *arguments)
        if calls == 3:
            object.__setattr__(output, "loss", output.loss * float("nan"))
        return output

    monkeypatch.setattr(RetrievalModel, "forward", forward)
    with pytest.raises(
        TrainingError, match=r"not finite at step 3: loss nan, .*videos of the batch: video\d+, "
    ):
        train(config)


def test_best_checkpoint_is_a_model(finished: TrainConfig) -> None:
    model, config = load_model(finished.run.output_dir / "best.pt")
    assert config.model == finished.model
    # What the folder looks like is told once.
    named = {"layout": "msrvtt", "train_split": "train-9k"}
    assert config.data == dataclasses.replace(finished.data, **named)
    assert not model.training
    tokens = model.tokenize(["a red circle"])
    assert torch.equal(model.encode_text(tokens), model.encode_text(tokens))
    state = load_checkpoint(finished.run.output_dir / "best.pt")
    best = max(
        record["text_to_video"]["recall_at_1"]
        for record in without_times(finished)
        if record["kind"] == "evaluation"
    )
    assert state["progress"]["best_recall"] == best


def test_logit_scale_comes_back_under_its_bound(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_hot(config: TrainConfig, **options: bool) -> RetrievalModel:
        model = build_model(config, **options)
        torch.nn.init.constant_(model.encoder.clip.logit_scale, 6.0)
        return model

    config = make_config("run", optimizer={"epochs": 1})
    monkeypatch.setattr(loop, "build_model", too_hot)
    train(config)
    scales = [r["logit_scale"] for r in without_times(config) if r["kind"] == "train"]
    assert max(scales) == 100
    assert final_state(config)["model"]["encoder.clip.logit_scale"] < math.log(100)


def test_a_run_with_relative_paths_is_used_from_anywhere(
    make_config: MakeConfig, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(dataset)
    torch.save(build_model(make_config("run")).encoder.clip.state_dict(), "clip.pt")
    config = make_config(
        "run",
        data={"annotation_dir": "annotations", "video_dir": "videos"},
        model={"name": "model.json", "pretrained": "clip.pt"},
        optimizer={"epochs": 1},
        run={"resume": True},
    )
    train(config)
    monkeypatch.chdir(tmp_path)
    metrics = evaluate_checkpoint(
        EvaluateConfig(config.run.output_dir / "last.pt", device="cpu", num_workers=1),
        progress=False,
    ).metrics
    monkeypatch.chdir(dataset)
    # Given as before, the settings are those of before.
    assert train(config) == metrics


def test_device_that_is_not_there(make_config: MakeConfig) -> None:
    with pytest.raises(ValueError, match=r"device 'cuda:99' cannot be used"):
        train(make_config("run", run={"device": "cuda:99"}))
    with pytest.raises(ValueError, match=r"device 'toaster' cannot be used"):
        train(make_config("run", run={"device": "toaster"}))
    with pytest.raises(ValueError, match=r"device 'meta' cannot be used: it holds shapes"):
        train(make_config("run", run={"device": "meta"}))
