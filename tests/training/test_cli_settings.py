"""Settings by flags and files: those that would run, and one line on each that is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests.training.commands import PRINT_CONFIG, exit_code


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--data.annotation_dir", "nowhere"], "nowhere does not exist or is not a folder"),
        (["--data.video_dir", "nowhere"], "nowhere does not exist"),
        (["--data.layout", "scrolls"], "layout must be one of ['auto', 'activitynet', "),
        (["--data.train_split", "train-8k"], "split must be one of ['train-9k', "),
        (["--data.max_frames", "0"], "data.max_frames must be at least 1"),
        (["--model.mode", "discovla", "--model.name", "RN50"], "ResNet"),
        (["--model.psi_heads", "3"], "num_heads must divide dim"),
        (["--loss.backend", "abacus"], "abacus"),
        (["--run.device", "toaster"], "toaster"),
        (["--run.device", "meta"], "device 'meta' cannot be used: it holds shapes and no numbers"),
        (["--run.seed", "-1"], "run.seed must be at least 0, got -1"),
        (["--run.seed", f"1{'0' * 30}"], "run.seed must be at most"),
        (["--data.max_frames", "100000"], "data.max_frames must be at most 1024, got 100000"),
        (["--data.num_workers", "-1"], "data.num_workers must be at least 0, got -1"),
        (["--data.pseudo_captions", "nowhere.json"], "nowhere.json does not exist"),
    ],
)
def test_users_errors_are_one_line(
    train_flags: list[str], flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(*train_flags, *flags) == 2
    error = capsys.readouterr().err
    assert error.startswith("garevla: error: ")
    assert error.count("\n") == 1
    assert message in error


def test_print_config_shows_what_would_run(
    train_flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(*train_flags, "--optimizer.epochs", "7", "--print_config") == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["optimizer"]["epochs"] == 7
    assert printed["model"]["temporal_layers"] == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file or recipe: 'settings.yaml'; the recipes are MODE_DATASET, "),
        ("optimizer: {epochs: [", "settings.yaml is not a YAML file: "),
        ("- 1", "settings.yaml must hold settings by section, got list"),
    ],
)
def test_settings_files_that_cannot_be_read(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    content: str | None,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    if content is not None:
        Path("settings.yaml").write_text(content)
    assert exit_code("train", "--config", "settings.yaml", *PRINT_CONFIG) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("flag", ["--config", "--model.name"])
def test_files_that_are_nested_too_deeply(
    train_flags: list[str], tmp_path: Path, flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "deep.json"
    path.write_text('{"a":' * 50_000 + "1" + "}" * 50_000)
    assert exit_code(*train_flags, flag, str(path)) == 2
    error = capsys.readouterr().err
    assert "deep.json is " in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--max_frames", "0"], "max_frames must be at least 1, got 0"),
        (["--max_frames", "100000"], "max_frames must be at most 1024, got 100000"),
        (["--num_workers", "-1"], "num_workers must be at least 1, got -1"),
    ],
)
def test_senseless_settings_of_the_check(
    flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = ["--annotation_dir", "a", "--video_dir", "v"]
    assert exit_code("check-data", *folders, *flags) == 2
    assert capsys.readouterr().err == f"garevla: error: {message}\n"


def test_settings_of_an_earlier_version(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(
        "optimiser: {epochs: 9, learning_rate: 1e-4}\n"
        "model: {psi_dropout: 0.1, psi_dropout_mode: video}\n"
    )
    assert exit_code("train", "--config", str(path), *PRINT_CONFIG) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert (printed["optimizer"]["epochs"], printed["optimizer"]["learning_rate"]) == (9, 1e-4)
    assert printed["model"]["psi_dropout"] == 0.1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("{optimiser: {epochs: 9}, optimizer: {epochs: 8}}", "optimiser"),
        ("{model: {psi_dropout_mode: text}}", "psi_dropout_mode"),
        ("{model: {psi: mlp}}", "model.psi"),
        ("{model: {psi_init: zero}}", "psi_init"),
    ],
)
def test_settings_that_there_are_not(
    tmp_path: Path, settings: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(settings)
    assert exit_code("train", "--config", str(path), *PRINT_CONFIG) == 2
    assert message in capsys.readouterr().err
