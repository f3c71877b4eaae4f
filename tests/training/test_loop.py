"""A run: what it writes, and what its numbers depend on."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch

from garevla import DiscoVLALossOutput, Texts
from garevla.training import (
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
from garevla.training.checkpoint import load_checkpoint
from garevla.training.curves import draw_curves
from garevla.training.log import read_metrics
from tests.training.runs import (
    STEPS_PER_EPOCH,
    MakeConfig,
    assert_same_end,
    final_state,
    without_times,
)

pytestmark = pytest.mark.usefixtures("no_curves")


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
