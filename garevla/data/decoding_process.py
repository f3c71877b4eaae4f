"""What a process of :mod:`garevla.data.decoding_processes` runs: questions in, answers out."""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from garevla.data.frame_sampling import Sampling
from garevla.data.video import check_video


def serve() -> None:
    """Answer the questions on stdin, a line of JSON each, by such lines.

    The first line written says that it has begun. The last two arguments are the function that
    answers, ``module:name``, and its settings.
    """
    module, name = sys.argv[-2].split(":")
    function = getattr(importlib.import_module(module), name)
    settings = json.loads(sys.argv[-1])
    # What a decoder prints must not get between the answers.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    print("{}", file=answers, flush=True)
    for line in sys.stdin:
        answer = _answer(function, json.loads(line), settings)
        print(json.dumps(answer), file=answers, flush=True)


def check(path: str, settings: dict[str, Any]) -> dict[str, Any]:
    """What :func:`garevla.data.video.check_video` finds of a file, for a sampling's settings."""
    return check_video(Path(path), Sampling.from_settings(settings))._asdict()


def _answer(function: Callable[[Any, Any], Any], question: Any, settings: Any) -> dict[str, Any]:
    try:
        return {"answer": function(question, settings)}
    except OSError as error:
        return {"not_written": str(error), "errno": error.errno}
    except Exception:
        return {"failure": traceback.format_exc()}
