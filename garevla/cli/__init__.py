"""The ``garevla`` command.

A sub-command is a file of this folder with ``SUMMARY``, a line for the help, and
``run(arguments)``, which returns the exit code. It imports at its head what costs no time; the
rest in ``run``, after the flags have been read.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
from collections.abc import Sequence
from types import ModuleType

import garevla

# In the order of the help; the file of check-data is check_data.py.
COMMANDS = (
    *("train", "recipes", "models", "evaluate", "compare", "analyse", "demo"),
    *("datasets", "check-data", "cache", "caption"),
    *("index", "search", "serve"),
    "env",
)

USER_ERROR = 2
INTERRUPTED = 130
OUTPUT_CLOSED = 141


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a sub-command.

    Args:
        arguments: without the program's name; ``None`` takes those of the process.

    Returns:
        Exit code: 0; 1 where ``check-data`` or ``cache`` found bad files; 2 for errors of the
        user's, told in a line (``GAREVLA_DEBUG=1`` shows the traceback); 130 when interrupted;
        141 where who reads the output stops, as ``head`` does.

    Raises:
        SystemExit: 0 after ``--help``, 2 for flags that do not exist or have wrong values.
    """
    parser = argparse.ArgumentParser(
        prog="garevla",
        description="Text-video retrieval: train and evaluate models, search videos.",
        epilog="'garevla COMMAND --help' explains a command and its flags. "
        "GAREVLA_DEBUG=1 in the environment shows the tracebacks of errors.",
    )
    parser.add_argument("--version", action="version", version=f"garevla {garevla.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name in COMMANDS:
        # Help comes from the command's own parser, whose packages need not be installed here.
        commands.add_parser(name, help=_command(name).SUMMARY, add_help=False)
    selected, rest = parser.parse_known_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("garevla").setLevel(logging.INFO)
    try:
        code: int = _command(selected.command).run(rest)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        print("garevla: interrupted", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _output_is_closed():
            return OUTPUT_CLOSED
        if os.environ.get("GAREVLA_DEBUG") or not _is_users(error):
            raise
        print(f"garevla: error: {_message(error)}", file=sys.stderr)
        return USER_ERROR


def _command(name: str) -> ModuleType:
    return importlib.import_module(f"{__name__}.{name.replace('-', '_')}")


def _output_is_closed() -> bool:
    """Whether nobody reads the output any more; what is still to be printed is then let go."""
    try:
        # Without a buffer to flush, only a write tells.
        print(flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


def _is_users(error: Exception) -> bool:
    """Whether an error says by itself what is wrong: garevla's own, and bad paths or values."""
    known = isinstance(error, OSError | ValueError | ImportError | NotImplementedError)
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
