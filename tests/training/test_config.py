from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from garevla.training.config import (
    ConfigError,
    DataConfig,
    EvaluationConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    TrainConfig,
    config_from_dict,
    differences,
)


def config(**data: object) -> TrainConfig:
    return TrainConfig(DataConfig(Path("annotations"), Path("videos"), **data))


def test_dictionary_round_trip() -> None:
    original = config(max_frames=7)
    original.model.pretrained = None
    plain = original.as_dict()
    assert plain["data"]["video_dir"] == "videos"
    assert config_from_dict(TrainConfig, plain) == original


def test_runs_from_before_there_were_layouts() -> None:
    old = config().as_dict()
    del old["data"]["layout"]
    assert config_from_dict(TrainConfig, old) == config()
    assert differences(old, config().as_dict()) == []


@pytest.mark.parametrize(
    ("section", "name"), [("model", "flavor"), ("flavor", "name"), ("data", None)]
)
def test_settings_that_do_not_exist_or_lack(section: str, name: str | None) -> None:
    plain = config().as_dict()
    if name is None:
        del plain[section]
    else:
        plain.setdefault(section, {})[name] = 1
    with pytest.raises(ConfigError, match=name if section == "model" else section):
        config_from_dict(TrainConfig, plain)


@pytest.mark.parametrize(
    ("section", "name", "value"),
    [
        (DataConfig, "max_frames", 0),
        (DataConfig, "frames_per_second", 0.0),
        (DataConfig, "train_split", "test"),
        (DataConfig, "num_workers", -1),
        (OptimizerConfig, "epochs", 0),
        (OptimizerConfig, "batch_size", 1),
        (OptimizerConfig, "learning_rate", float("nan")),
        (OptimizerConfig, "clip_lr_scale", -1.0),
        (OptimizerConfig, "weight_decay", -0.1),
        (OptimizerConfig, "warmup_proportion", 1.0),
        (OptimizerConfig, "max_grad_norm", 0.0),
        (EvaluationConfig, "batch_size", 0),
        (RunConfig, "save_every_steps", -1),
        (ModelConfig, "name", None),
        (ModelConfig, "psi_init", "zero"),
        (ModelConfig, "corrects", "both"),
    ],
)
def test_senseless_values_are_named(section: type, name: str, value: float | str) -> None:
    paths = {"annotation_dir": Path("a"), "video_dir": Path("v")} if section is DataConfig else {}
    with pytest.raises(ConfigError, match=rf"\w+\.{name} must .* '?{value}"):
        section(**paths, **{name: value})


def test_increments_of_videos_need_increments() -> None:
    with pytest.raises(ConfigError, match=r"model\.corrects video is for modes with increments"):
        ModelConfig(mode="discovla", corrects="video")


def test_differences_that_matter() -> None:
    old = config()
    new = dataclasses.replace(
        old,
        data=DataConfig(Path("elsewhere"), Path("moved"), num_workers=0, max_frames=6),
        model=ModelConfig(psi_dropout=0.0),
        run=RunConfig(Path("other"), device="cpu", resume=True),
    )
    assert differences(old.as_dict(), old.as_dict()) == []
    assert differences(old.as_dict(), new.as_dict()) == [
        "data.max_frames: 12 -> 6",
        "model.psi_dropout: 0.3 -> 0.0",
    ]
