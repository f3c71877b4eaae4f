from __future__ import annotations

import builtins
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from garevla import cli
from garevla.recipes import recipe_names
from garevla.training import TrainConfig, TrainingError, loop
from garevla.training.log import read_metrics
from garevla.training.settings_file import read_settings

PRINT_CONFIG = ("--data.annotation_dir", "a", "--data.video_dir", "v", "--print_config")


@pytest.fixture
def train_flags(make_config: Callable[..., TrainConfig]) -> list[str]:
    path = make_config("x").run.output_dir.parent / "small.yaml"
    path.write_text(yaml.safe_dump(make_config("run").as_dict()))
    return ["train", "--config", str(path)]


@pytest.fixture(autouse=True)
def _no_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "draw_curves", lambda records, path: None)
    monkeypatch.delenv("GAREVLA_DEBUG", raising=False)


def exit_code(*arguments: str) -> int:
    try:
        return cli.main(arguments)
    except SystemExit as exit_:
        return exit_.code


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


def test_print_config_shows_what_would_run(
    train_flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(*train_flags, "--optimizer.epochs", "7", "--print_config") == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["optimizer"]["epochs"] == 7
    assert printed["model"]["temporal_layers"] == 1


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


def test_published_recipe() -> None:
    recipe = read_settings("gare_msrvtt")
    assert (recipe["data"]["max_frames"], recipe["model"]["context_length"]) == (12, 32)
    assert recipe["model"]["psi_dropout"] == 0.3
    assert recipe["optimizer"] == {
        "epochs": 5,
        "batch_size": 128,
        "learning_rate": 1e-4,
        "clip_lr_scale": 1e-3,
        "weight_decay": 0.2,
        "warmup_proportion": 0.1,
        "max_grad_norm": 1.0,
    }


def test_recipes_are_valid(capsys: pytest.CaptureFixture[str]) -> None:
    for name in recipe_names():
        assert exit_code("train", "--config", name, *PRINT_CONFIG) == 0
        printed = yaml.safe_load(capsys.readouterr().out)
        assert printed["data"]["video_dir"] == "v"
        assert printed["run"]["output_dir"] == f"runs/{name}"


def test_recipes_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("recipes") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == recipe_names()
    assert exit_code("recipes", "--help") == 0
    assert exit_code("recipes", "gare_msrvtt") == 2


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
