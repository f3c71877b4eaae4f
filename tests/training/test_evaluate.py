from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

import garevla
from garevla.data.dataset import VideoDataset
from garevla.training import (
    ConfigError,
    EvaluateConfig,
    OfficialConfig,
    TrainConfig,
    evaluate,
    evaluate_checkpoint,
    load_model,
    load_official_model,
)
from garevla.training.checkpoint import load_checkpoint


@pytest.fixture
def config(finished: TrainConfig) -> EvaluateConfig:
    """To evaluate a finished run's last weights."""
    return EvaluateConfig(finished.run.output_dir / "last.pt", device="cpu", num_workers=1)


def test_a_run_folder_that_cannot_be_written_into(
    config: EvaluateConfig, caplog: pytest.LogCaptureFixture
) -> None:
    expected = evaluate_checkpoint(config, progress=False)
    # Rights do not keep everyone out, but a folder in a file's place does.
    for name in ("checked_videos.json", "evaluation.json"):
        path = config.checkpoint.with_name(name)
        path.unlink()
        path.mkdir()
    assert evaluate_checkpoint(config, progress=False) == expected
    assert "videos found good are not noted: " in caplog.text
    assert "figures are shown, but not kept: " in caplog.text


def test_figures_are_written_where_asked_for(config: EvaluateConfig, tmp_path: Path) -> None:
    config.output = tmp_path / "made" / "figures.json"
    metrics = evaluate_checkpoint(config, progress=False)
    figures = json.loads(config.output.read_text())
    assert figures == {name: values.as_dict() for name, values in metrics.items()}
    assert [file.name for file in config.output.parent.iterdir()] == ["figures.json"]


def test_an_output_that_cannot_be_written_is_refused_before_the_evaluation(
    config: EvaluateConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate, "read_split", None)
    with pytest.raises(IsADirectoryError, match=f"output is a folder, not a file: {tmp_path}"):
        evaluate_checkpoint(dataclasses.replace(config, output=tmp_path))
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"File exists|Not a directory"):
        evaluate_checkpoint(dataclasses.replace(config, output=tmp_path / "file" / "figures.json"))
    monkeypatch.setattr(evaluate.os, "access", lambda path, mode: False)
    with pytest.raises(PermissionError, match=f"no right to write into {tmp_path}"):
        evaluate_checkpoint(dataclasses.replace(config, output=tmp_path / "figures.json"))


def test_a_video_that_is_read_once_is_not_kept_in_memory(
    finished: TrainConfig, config: EvaluateConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert finished.data.keep_in_memory
    datasets = []

    class Recorded(VideoDataset):
        def __init__(self, *arguments: object, keep_in_memory: bool, **options: object) -> None:
            datasets.append(keep_in_memory)
            super().__init__(*arguments, **options)

    monkeypatch.setattr(evaluate, "VideoDataset", Recorded)
    evaluate_checkpoint(config, progress=False)
    assert datasets == [False]


@pytest.fixture
def official(finished: TrainConfig) -> Path:
    """The finished run's weights as the published code of GARE would have saved them."""
    names = {
        "encoder.clip.": "clip.",
        "encoder.temporal.transformer.": "transformerClip.",
        "encoder.temporal.position_embedding": "frame_position_embeddings.weight",
        "criterion.psi.": "psi.",
    }
    weights = load_checkpoint(finished.run.output_dir / "last.pt")["model"]
    published = {
        official + name.removeprefix(own): value
        for name, value in weights.items()
        for own, official in names.items()
        if name.startswith(own)
    }
    assert len(published) == len(weights)
    path = finished.run.output_dir / "official.pth"
    torch.save({"state_dict": published}, path)
    return path


@pytest.fixture
def official_config(finished: TrainConfig, official: Path) -> EvaluateConfig:
    settings = OfficialConfig(model_name=finished.model.name, context_length=16, max_frames=4)
    return EvaluateConfig(
        official=official,
        official_settings=settings,
        annotation_dir=finished.data.annotation_dir,
        video_dir=finished.data.video_dir,
        device="cpu",
        num_workers=0,
        check_videos=False,
    )


def test_a_published_checkpoint_has_the_figures_of_the_run(
    config: EvaluateConfig, official_config: EvaluateConfig
) -> None:
    expected = evaluate_checkpoint(config, progress=False)
    own, _ = load_model(config.checkpoint)
    model = load_official_model(official_config.official, official_config.official_settings)
    assert own.state_dict().keys() == model.state_dict().keys()
    for name, value in own.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name
    assert evaluate_checkpoint(official_config, progress=False) == expected
    figures = json.loads(official_config.official.with_name("evaluation.json").read_text())
    assert figures["text_to_video"] == expected["text_to_video"].as_dict()


def test_its_settings_reach_the_model(official: Path, finished: TrainConfig) -> None:
    settings = OfficialConfig(
        model_name=finished.model.name,
        context_length=16,
        max_frames=4,
        psi_heads=2,
        pool_temperature=5.0,
        padding="published",
    )
    model = load_official_model(official, settings)
    assert model.criterion.psi.num_heads == 2
    assert model.criterion.pool_temperature == 5.0
    assert model.criterion.psi.padding == model.encoder.padding == "published"
    assert (model.encoder.max_frames, model.tokenize(["a"]).shape[1]) == (4, 16)


def test_without_psi_the_similarity_is_clip4clips(official: Path, finished: TrainConfig) -> None:
    weights = torch.load(official, weights_only=True)["state_dict"]
    torch.save({n: x for n, x in weights.items() if not n.startswith("psi.")}, official)
    settings = OfficialConfig(model_name=finished.model.name, context_length=16, max_frames=4)
    model = load_official_model(official, settings)
    text, frames = torch.randn(3, 16), torch.randn(2, 4, 16)
    expected = garevla.mean_frame_similarity(text, frames)
    assert torch.equal(model.similarity(text, frames), expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "give checkpoint, of a run, or official, of published code$"),
        ({"checkpoint": Path("a"), "official": Path("b")}, "not both"),
        ({"official": Path("b.pth")}, r"b\.pth needs annotation_dir and video_dir"),
        (
            {"checkpoint": Path("a"), "official_settings": OfficialConfig(psi_heads=2)},
            "official_settings are for official",
        ),
    ],
)
def test_which_of_two_checkpoints(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EvaluateConfig(**settings)


def test_senseless_sampling_is_named() -> None:
    with pytest.raises(ConfigError, match=r"official_settings\.max_frames must be at least 1"):
        OfficialConfig(max_frames=0)


@pytest.mark.parametrize(("name", "value"), [("batch_size", 0), ("num_workers", -1)])
def test_senseless_values_are_named(name: str, value: int) -> None:
    with pytest.raises(ConfigError, match=f"{name} must be at least .*{value}"):
        EvaluateConfig(Path("last.pt"), **{name: value})
