from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from garevla.data.dataset import VideoDataset
from garevla.training import (
    ConfigError,
    EvaluateConfig,
    TrainConfig,
    evaluate,
    evaluate_checkpoint,
)


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


@pytest.mark.parametrize(("name", "value"), [("batch_size", 0), ("num_workers", -1)])
def test_senseless_values_are_named(name: str, value: int) -> None:
    with pytest.raises(ConfigError, match=f"{name} must be at least .*{value}"):
        EvaluateConfig(Path("last.pt"), **{name: value})
