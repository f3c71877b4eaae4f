"""`garevla train`, `evaluate` and `check-data` on videos, bad ones among them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from garevla import cli
from garevla.training import TrainConfig
from garevla.training.log import read_metrics
from tests.training.commands import exit_code

pytestmark = pytest.mark.usefixtures("no_curves")


def test_train_then_evaluate(
    train_flags: list[str],
    make_config: Callable[..., TrainConfig],
    dataset: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = make_config("run").run.output_dir
    assert cli.main([*train_flags, "--optimizer.epochs", "1"]) == 0
    shown = capsys.readouterr().out
    assert "text to video" in shown
    assert "protocol: msrvtt, split test: 8 videos" in shown
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["optimizer"]["epochs"] == 1

    moved = folder.with_name("moved")
    folder.rename(moved)
    flags = ["--checkpoint", str(moved / "last.pt"), "--num_workers", "1", "--device", "cpu"]
    assert cli.main(["evaluate", *flags]) == 0
    shown = capsys.readouterr().out
    assert "video to text" in shown
    assert "protocol: msrvtt, split test: 8 videos" in shown
    figures = json.loads((moved / "evaluation.json").read_text())
    last = read_metrics(moved / "metrics.jsonl")[-1]
    for direction in ("text_to_video", "video_to_text"):
        assert figures[direction] == last[direction]
    assert cli.main(["compare", str(moved), str(moved)]) == 0
    assert "1.0000" in capsys.readouterr().out

    # The run's own settings file, with a flag to resume, is enough to go on.
    config["run"]["output_dir"] = str(moved)
    (moved / "config.yaml").write_text(yaml.safe_dump(config))
    flags = ["--config", str(moved / "config.yaml"), "--run.resume", "true"]
    assert cli.main(["train", *flags]) == 0


def test_evaluate_without_a_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("evaluate", "--checkpoint", str(tmp_path / "best.pt")) == 2
    assert "checkpoint not found" in capsys.readouterr().err
    (tmp_path / "best.pt").write_bytes(b"nonsense")
    assert exit_code("evaluate", "--checkpoint", str(tmp_path / "best.pt")) == 2
    assert "not a readable checkpoint" in capsys.readouterr().err


# The data set's videos are numbered from 0; the last 8 are the test split.
DAMAGED = ("video20", "video21", "video22")


@pytest.fixture
def damaged_dataset(dataset: Path, tmp_path: Path) -> Path:
    """The data set with a truncated, an empty and a missing test video."""
    root = tmp_path / "damaged"
    shutil.copytree(dataset, root)
    videos = [next((root / "videos").rglob(f"{name}.mp4")) for name in DAMAGED]
    videos[0].write_bytes(videos[0].read_bytes()[:500])
    videos[1].write_bytes(b"")
    videos[2].unlink()
    return root


def test_check_data_lists_every_bad_file(
    damaged_dataset: Path, dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def check(root: Path, *splits: str) -> tuple[int, str]:
        folders = ["--annotation_dir", str(root / "annotations")]
        folders += ["--video_dir", str(root / "videos")]
        code = cli.main(["check-data", *folders, *splits, "--num_workers", "1"])
        return code, capsys.readouterr().out

    code, output = check(damaged_dataset, "--splits", "test")
    assert code == 1
    assert all(f"{name}.mp4: " in output for name in DAMAGED)
    assert "video23" not in output
    assert "test: 3 of 8 videos are bad" in output
    for splits in (["--splits", "test"], ["--splits=test"], ["--splits", "[test]"]):
        assert check(dataset, *splits) == (0, "test: 0 of 8 videos are bad\n")
    both = "test: 0 of 8 videos are bad\ntrain-9k: 0 of 16 videos are bad\n"
    assert check(dataset, "--splits", "test", "train-9k") == (0, both)
    with pytest.raises(SystemExit):
        check(dataset, "--splits")


@pytest.mark.parametrize("num_workers", ["0", "2"])
def test_bad_video_in_training_is_named(
    train_flags: list[str],
    dataset: Path,
    tmp_path: Path,
    num_workers: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(dataset / "videos", tmp_path / "videos")
    first = min((tmp_path / "videos").rglob("*.mp4"))
    first.write_bytes(first.read_bytes()[:500])
    flags = ["--data.video_dir", str(tmp_path / "videos"), "--data.num_workers", num_workers]
    assert exit_code(*train_flags, *flags) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"garevla: error: {first}: ")
    assert error.count("\n") == 1


def test_bad_videos_are_skipped_when_asked(
    damaged_dataset: Path,
    train_flags: list[str],
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    flags = ["--data.video_dir", str(damaged_dataset / "videos"), "--optimizer.epochs", "1"]
    flags += ["--data.check_videos", "true", "--data.num_workers", "1"]
    assert exit_code(*train_flags, *flags) == 2
    assert "3 of 8 videos of split 'test' cannot be used" in capsys.readouterr().err
    assert exit_code(*train_flags, *flags, "--data.bad_videos", "skip") == 0
    assert "skipped 3 of 8 videos" in caplog.text
