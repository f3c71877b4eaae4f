"""The ``garevla`` command."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import garevla

if TYPE_CHECKING:
    from garevla.evaluation import RetrievalMetrics

Config = TypeVar("Config")

BAD_FILES = 1
USER_ERROR = 2
INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a sub-command.

    Args:
        arguments: without the program's name; ``None`` takes those of the process.

    Returns:
        Exit code: 0; 1 where ``check-data`` found bad files; 2 for errors of the user's, told in
        a line (``GAREVLA_DEBUG=1`` shows the traceback); 130 when interrupted.

    Raises:
        SystemExit: 0 after ``--help``, 2 for flags that do not exist or have wrong values.
    """
    parser = argparse.ArgumentParser(
        prog="garevla",
        description="Text-video retrieval: train and evaluate models.",
        epilog="'garevla COMMAND --help' explains a command and its flags. "
        "GAREVLA_DEBUG=1 in the environment shows the tracebacks of errors.",
    )
    parser.add_argument("--version", action="version", version=f"garevla {garevla.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, command in _COMMANDS.items():
        # Help comes from the command's own parser, whose packages need not be installed here.
        commands.add_parser(name, help=command.summary, add_help=False)
    selected, rest = parser.parse_known_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("garevla").setLevel(logging.INFO)
    try:
        return _COMMANDS[selected.command].run(rest)
    except KeyboardInterrupt:
        print("garevla: interrupted", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        if os.environ.get("GAREVLA_DEBUG") or not _is_users(error):
            raise
        print(f"garevla: error: {_message(error)}", file=sys.stderr)
        return USER_ERROR


def _train(arguments: list[str]) -> int:
    from garevla.training.config import TrainConfig
    from garevla.training.settings_file import SettingsFile

    config = _parse("train", TrainConfig, arguments, config_action=SettingsFile)
    # Only now: this takes seconds, which wrong flags need not wait for.
    from garevla.training.loop import train

    metrics = train(config)
    if int(os.environ.get("RANK", "0")):
        return 0  # the first of torchrun's processes speaks
    _print_metrics(metrics)
    print(f"written to {config.run.output_dir}")
    return 0


def _evaluate(arguments: list[str]) -> int:
    from garevla.training.config import EvaluateConfig

    config = _parse("evaluate", EvaluateConfig, arguments)
    from garevla.training.evaluate import evaluate_checkpoint

    _print_metrics(evaluate_checkpoint(config, progress=sys.stderr.isatty()))
    return 0


def _demo(arguments: list[str]) -> int:
    from garevla.demo import DemoConfig, run_demo

    run_demo(_parse("demo", DemoConfig, arguments))
    return 0


def _check_data(arguments: list[str]) -> int:
    from garevla.data.check_settings import CheckDataConfig

    config = _parse("check-data", CheckDataConfig, arguments)
    from garevla.data.check import check_split

    num_bad = 0
    for split in config.splits:
        report = check_split(
            config.annotation_dir,
            config.video_dir,
            split,
            layout=config.layout,
            sampling=config.frame_sampling,
            num_workers=config.num_workers,
            progress=sys.stderr.isatty(),
        )
        for line in report.lines():
            print(line)
        print(f"{split}: {len(report.bad)} of {report.num_checked} videos are bad")
        if report.of_unknown_length:
            print(f"{split}: {len(report.of_unknown_length)} do not say how long they are")
        num_bad += len(report.bad)
    return BAD_FILES if num_bad else 0


def _caption(arguments: list[str]) -> int:
    from garevla.data.captioning import CaptionConfig, run_captioning

    config = _parse("caption", CaptionConfig, arguments)
    report = run_captioning(config, progress=sys.stderr.isatty())
    for path, reason in report.bad:
        print(f"{path}: {reason}")
    print(
        f"{report.num_frames} frames of {report.num_videos} videos captioned, "
        f"{len(report.bad)} videos left out: {report.output}"
    )
    return 0


def _recipes(arguments: list[str]) -> int:
    from garevla.recipes import recipe_names, recipe_summary

    summary = _COMMANDS["recipes"].summary
    argparse.ArgumentParser("garevla recipes", description=summary).parse_args(arguments)
    width = max(len(name) for name in recipe_names())
    for name in recipe_names():
        print(f"{name:{width}}  {recipe_summary(name)}")
    return 0


def _env(arguments: list[str]) -> int:
    from garevla.utils.env import main as print_environment

    print_environment(arguments)
    return 0


class _Command(NamedTuple):
    summary: str
    run: Callable[[list[str]], int]


_COMMANDS = {
    "train": _Command("train a model, evaluating it after each epoch", _train),
    "recipes": _Command("list the recipes that 'garevla train --config' takes", _recipes),
    "evaluate": _Command("evaluate a trained model on the test split", _evaluate),
    "demo": _Command("train and evaluate a small model on generated videos", _demo),
    "check-data": _Command("list the videos of a data set that cannot be used", _check_data),
    "caption": _Command("caption the frames of videos, for training with DiscoVLA", _caption),
    "env": _Command("print versions, devices and backends for a bug report", _env),
}


def _parse(
    command: str, config_class: type[Config], arguments: list[str], **options: Any
) -> Config:
    from garevla.flags import parse

    return parse(command, _COMMANDS[command].summary, config_class, arguments, **options)


def _print_metrics(metrics: dict[str, RetrievalMetrics]) -> None:
    from garevla.evaluation import metrics_table

    print(metrics_table(metrics))


def _is_users(error: Exception) -> bool:
    """Whether an error says by itself what is wrong: garevla's own, and bad paths or values."""
    known = isinstance(error, OSError | ValueError | ImportError)
    return known or type(error).__module__.startswith("garevla.") or _is_out_of_memory(error)


def _is_out_of_memory(error: Exception) -> bool:
    # torch's error of this name is known without importing torch; that of CPUs has no class.
    is_gpus = type(error).__name__ == "OutOfMemoryError"
    return is_gpus or isinstance(error, MemoryError) or "can't allocate memory" in str(error)


def _message(error: Exception) -> str:
    message = str(error).strip()
    if _is_out_of_memory(error):
        reason = message.partition("\n")[0]
        return f"out of memory; smaller batches, or fewer frames of a video, need less ({reason})"
    if isinstance(error, ImportError) and "garevla[" not in message:
        return f'{message}; this command needs: pip install "garevla[video]"'
    if message.startswith("Caught "):
        # From a data-loading process, with its traceback; the error itself is the last line.
        return message.splitlines()[-1].partition(": ")[2]
    return message
