"""The command line itself: help, flags, exit codes, and what it does not need."""

from __future__ import annotations

import builtins
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from garevla import cli
from garevla.training import TrainConfig, TrainingError, loop
from tests.training.commands import exit_code


def test_help_lists_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("--help") == 0
    output = capsys.readouterr().out
    for command in ("train", "recipes", "evaluate", "demo", "check-data", "env"):
        assert command in output
    assert exit_code("--version") == 0
    assert capsys.readouterr().out.startswith("garevla 0.")


@pytest.mark.parametrize(
    ("command", "flag", "explanation"),
    [
        ("train", "--optimizer.clip_lr_scale", "CLIP's learning rate as a share of"),
        ("evaluate", "--checkpoint", "best.pt or last.pt of a run."),
        ("check-data", "--video_dir", "Folder with <video_id>.mp4"),
        ("caption", "--num_beams", "Width of the beam search"),
    ],
)
def test_help_explains_flags(
    command: str, flag: str, explanation: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(command, "--help") == 0
    output = " ".join(capsys.readouterr().out.split())
    assert flag in output
    assert explanation in output


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("trian",),
        ("train", "--data.video_dir", "x"),
        ("train", "--no_such_flag", "1"),
        ("train", "--data.max_frames", "many"),
        ("train", "--config", "nowhere.yaml"),
    ],
)
def test_wrong_flags(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(*arguments) == 2
    assert "error" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["train", "--optimizer.epoch", "3"], "did you mean --optimizer.epochs?"),
        (["train", "--optimizer.learning-rate=3"], "did you mean --optimizer.learning_rate?"),
        (["train", "--epochs", "3"], "did you mean --optimizer.epochs?"),
        (["train", "--data.vdeo_dir=v"], "did you mean --data.video_dir?"),
        (["train", "--run.sed=1", "--epoch=3"], "did you mean --run.seed and --optimizer.epochs?"),
        (["evaluate", "--chekpoint", "best.pt"], "did you mean --checkpoint?"),
        (["train", "--config", "FILE"], "did you mean --optimizer.epochs?"),
    ],
)
def test_near_misses_of_flags_get_a_hint(
    arguments: list[str], hint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text("optimizer: {epoch: 3}\n")
    assert exit_code(*(str(path) if each == "FILE" else each for each in arguments)) == 2
    assert capsys.readouterr().err.endswith(f"; {hint}\n")


def test_flags_like_no_other_get_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("train", "--no_such_flag", "1") == 2
    assert "did you mean" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["--version"],
        ["--help"],
        ["recipes"],
        ["train", "--help"],
        ["train", "--epochs", "3"],
        ["evaluate", "--help"],
        ["check-data", "--help"],
    ],
)
def test_help_and_wrong_flags_do_not_wait_for_torch(arguments: list[str]) -> None:
    program = (
        "import sys; sys.modules['torch'] = sys.modules['open_clip'] = None\n"
        "from garevla.cli import main; main(sys.argv[1:])"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False
    )
    assert "Traceback" not in result.stderr, result.stderr
    assert "import of" not in result.stderr, result.stderr
    assert "gare" in result.stdout + result.stderr


def test_debug_shows_the_traceback(train_flags: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GAREVLA_DEBUG", "1")
    with pytest.raises(ValueError, match=r"data\.max_frames"):
        cli.main([*train_flags, "--data.max_frames", "0"])


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (TrainingError("not finite"), 2),
        (NotImplementedError("frame-level terms of a batch are for one process"), 2),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"), 2),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to"), 2),
        (KeyboardInterrupt(), 130),
    ],
)
def test_exit_codes_of_errors(
    train_flags: list[str], monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int
) -> None:
    def fail(config: TrainConfig) -> None:
        raise error

    monkeypatch.setattr(loop, "train", fail)
    assert cli.main(train_flags) == code


def test_errors_of_ours_are_not_hidden(
    train_flags: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(config: TrainConfig) -> None:
        raise AssertionError("a bug")

    monkeypatch.setattr(loop, "train", fail)
    with pytest.raises(AssertionError, match="a bug"):
        cli.main(train_flags)


def test_switches_need_no_value(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed = []
    monkeypatch.setattr(
        "garevla.training.evaluate.evaluate_checkpoint",
        lambda config, progress: parsed.append((config.dsl, config.qb_norm)),
    )
    for flags in (["--dsl"], ["--dsl", "--qb_norm=true"], ["--dsl", "false", "--qb_norm"], []):
        assert cli.main(["evaluate", *flags, "--checkpoint", "best.pt"]) == 0
    assert cli.main(["evaluate", "--checkpoint", "best.pt", "--qb_norm"]) == 0
    assert parsed == [(True, False), (True, True), (False, True), (False, False), (False, True)]


def test_without_the_extra_packages(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    imported = builtins.__import__

    def without_jsonargparse(name: str, *arguments: object, **options: object) -> object:
        if name.partition(".")[0] == "jsonargparse":
            raise ImportError("No module named 'jsonargparse'")
        return imported(name, *arguments, **options)

    monkeypatch.delitem(sys.modules, "garevla.cli.flags", raising=False)
    monkeypatch.setattr(builtins, "__import__", without_jsonargparse)
    assert exit_code("train") == 2
    error = capsys.readouterr().err
    assert "No module named 'jsonargparse'" in error
    assert 'pip install "garevla[video]"' in error


def test_env_and_help_need_no_extra_packages() -> None:
    program = """
import sys
for name in ("av", "decord", "jsonargparse", "matplotlib", "open_clip", "pandas", "torchvision",
             "tqdm", "yaml"):
    sys.modules[name] = None
from garevla.cli import main
assert main(["env"]) == 0
assert main(["recipes"]) == 0
main(["--help"])
"""
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert "torch" in result.stdout
    assert "gare_msrvtt" in result.stdout
    assert "check-data" in result.stdout


@pytest.mark.parametrize("buffered", [True, False])
def test_output_that_nobody_reads(buffered: bool) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    flags = [] if buffered else ["-u"]
    with os.fdopen(writing, "wb") as output:
        result = subprocess.run(
            [sys.executable, *flags, "-m", "garevla", "recipes"],
            stdout=output,
            stderr=subprocess.PIPE,
            env={name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"},
            text=True,
            check=False,
        )
    assert (result.returncode, result.stderr) == (141, "")
