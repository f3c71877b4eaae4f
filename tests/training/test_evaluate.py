from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

import garevla
from garevla.data import AnnotationError, layouts
from garevla.data.dataset import VideoDataset
from garevla.encoders import PretrainedWeightsError
from garevla.training import (
    ConfigError,
    EvaluateConfig,
    OfficialConfig,
    TrainConfig,
    evaluate_checkpoint,
    held_out,
    load_model,
    load_official_model,
)
from garevla.training.checkpoint import CheckpointError, load_checkpoint, save_checkpoint


@pytest.fixture
def config(finished: TrainConfig) -> EvaluateConfig:
    """To evaluate a finished run's last weights."""
    return EvaluateConfig(finished.run.output_dir / "last.pt", device="cpu", num_workers=1)


def test_a_run_folder_that_cannot_be_written_into(
    config: EvaluateConfig, caplog: pytest.LogCaptureFixture
) -> None:
    expected = evaluate_checkpoint(config, progress=False).metrics
    # Rights do not keep everyone out, but a folder in a file's place does.
    for name in ("checked_videos.json", "evaluation.json"):
        path = config.checkpoint.with_name(name)
        path.unlink()
        path.mkdir()
    assert evaluate_checkpoint(config, progress=False).metrics == expected
    assert "videos found good are not noted: " in caplog.text
    assert "figures are shown, but not kept: " in caplog.text


def test_figures_are_written_where_asked_for(config: EvaluateConfig, tmp_path: Path) -> None:
    config.output = tmp_path / "made" / "figures.json"
    found = evaluate_checkpoint(config, progress=False)
    assert json.loads(config.output.read_text()) == found.as_dict()
    ranks = config.output.with_name("figures.ranks.jsonl")
    assert ranks.read_text(encoding="utf-8").splitlines() == list(found.rank_lines())
    assert sorted(config.output.parent.iterdir()) == [config.output, ranks]


def test_on_data_of_another_layout(
    config: EvaluateConfig, finished: TrainConfig, tmp_path: Path
) -> None:
    config.check_videos = False
    expected = evaluate_checkpoint(config, progress=False)
    captions = layouts.layout("msrvtt").annotations(finished.data.annotation_dir, "test").captions
    rows = [{"video": each.video_id, "caption": each.text} for each in captions]
    (tmp_path / "captions.json").write_text(json.dumps(rows))
    config.annotation_dir, config.layout = tmp_path, "auto"
    found = evaluate_checkpoint(config, progress=False)
    assert found.metrics == expected.metrics
    assert (found.protocol.layout, expected.protocol.layout) == ("folder", "msrvtt")


def test_every_option_reaches_the_figures(
    config: EvaluateConfig, finished: TrainConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plain = evaluate_checkpoint(config, progress=False)
    lines = [json.loads(line) for line in plain.rank_lines()]
    videos = [line["query"] for line in lines if line["direction"] == "video_to_text"]
    duplicates = tmp_path / "duplicates.csv"
    duplicates.write_text(",".join(videos[:4]) + "\n")
    config = dataclasses.replace(
        config,
        video_to_text="sentences",
        near_duplicates=duplicates,
        dsl=True,
        dsl_scale=50.0,
        qb_norm=True,
        qb_norm_beta=10.0,
        num_resamples=10,
        seed=3,
        output=tmp_path / "figures.json",
    )
    figures = evaluate_checkpoint(config, progress=False).as_dict()
    protocol = figures["protocol"]
    assert protocol["layout"] == "msrvtt"
    assert (protocol["split"], protocol["num_videos"]) == ("test", len(videos))
    assert protocol["video_to_text"] == "sentences"
    assert protocol["near_duplicates"].startswith("duplicates.csv, 1 groups of 4 videos")
    assert figures["dual_softmax"]["post_processing"].endswith("scale 50 (transductive)")
    assert "beta 10, bank of 32 captions" in figures["qb_norm"]["post_processing"]
    assert figures["bootstrap"] == {"num_resamples": 10, "seed": 3}
    mean_rank = plain.metrics["text_to_video"].mean_rank
    assert figures["text_to_video"]["mean_rank"] < mean_rank
    assert "the bank of training captions goes without" not in caplog.text

    duplicates.write_text("video0,nowhere\n")
    with pytest.raises(AnnotationError, match="videos that are not ranked: video0, nowhere"):
        evaluate_checkpoint(config, progress=False)


def test_a_bank_without_test_captions(
    config: EvaluateConfig,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    layout = type(layouts.layout("msrvtt"))
    read = layout.annotations
    monkeypatch.setattr(layout, "annotations", lambda self, folder, _: read(self, folder, "test"))
    with pytest.raises(AnnotationError, match="has no captions for a bank"):
        evaluate_checkpoint(dataclasses.replace(config, qb_norm=True), progress=False)
    assert "goes without those of 8 test videos: " in caplog.text


def test_weights_that_match_nothing_are_refused(
    config: EvaluateConfig, official_config: EvaluateConfig
) -> None:
    state = load_checkpoint(config.checkpoint)
    state["model"] = {f"other.{name}": value for name, value in state["model"].items()}
    save_checkpoint(config.checkpoint, state)
    with pytest.raises(
        CheckpointError, match=r"holds another model: \d+ of \d+ weights are absent"
    ):
        evaluate_checkpoint(config, progress=False)
    weights = torch.load(official_config.official, weights_only=True)["state_dict"]
    for wrong in (
        {f"other.{name}": value for name, value in weights.items()},
        {name: value for name, value in weights.items() if name.startswith("psi.")},
        {"weight": torch.zeros(3)},
    ):
        torch.save(wrong, official_config.official)
        with pytest.raises(PretrainedWeightsError):
            evaluate_checkpoint(official_config, progress=False)


def test_an_output_that_cannot_be_written_is_refused_before_the_evaluation(
    config: EvaluateConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(held_out, "read_split", None)
    with pytest.raises(IsADirectoryError, match=f"output is a folder, not a file: {tmp_path}"):
        evaluate_checkpoint(dataclasses.replace(config, output=tmp_path))
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"File exists|Not a directory"):
        evaluate_checkpoint(dataclasses.replace(config, output=tmp_path / "file" / "figures.json"))
    monkeypatch.setattr(held_out.os, "access", lambda path, mode: False)
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

    monkeypatch.setattr(held_out, "VideoDataset", Recorded)
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
    expected = evaluate_checkpoint(config, progress=False).metrics
    own, _ = load_model(config.checkpoint)
    model = load_official_model(official_config.official, official_config.official_settings)
    assert own.state_dict().keys() == model.state_dict().keys()
    for name, value in own.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name
    assert evaluate_checkpoint(official_config, progress=False).metrics == expected
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


@pytest.mark.parametrize(
    ("name", "value"), [("batch_size", 0), ("num_workers", -1), ("num_resamples", 1), ("seed", -1)]
)
def test_senseless_values_are_named(name: str, value: int) -> None:
    with pytest.raises(ConfigError, match=f"{name} must be at least .*{value}"):
        EvaluateConfig(Path("last.pt"), **{name: value})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"video_to_text": "both"}, "video_to_text must be .* got 'both'"),
        ({"dsl_scale": 0.0}, "dsl_scale must be positive"),
        ({"qb_norm_beta": -1.0}, "qb_norm_beta must be positive"),
        ({"ties": "compat", "near_duplicates": Path("a.csv")}, "near_duplicates need ties"),
    ],
)
def test_senseless_protocols_are_named(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EvaluateConfig(Path("last.pt"), **settings)
