"""What a process of :mod:`garevla.data.decoding_processes` runs: files in, verdicts out."""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from garevla.data.frame_sampling import Sampling
from garevla.data.video import Verdict, check_video


def serve() -> None:
    """Do the task of the last argument with the jobs on stdin, a JSON value a line, and write a
    JSON object for each.

    The first line written says that it has begun.
    """
    name, settings = json.loads(sys.argv[-1])
    task = _TASKS[name](settings)
    # What a decoder prints must not get between the answers.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    print("{}", file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(_answer(task, json.loads(line))), file=answers, flush=True)


def _answer(task: Callable[[Any], Verdict], job: Any) -> dict[str, Any]:
    try:
        return task(job)._asdict()
    except OSError as error:
        return {"not_written": str(error), "errno": error.errno}
    except Exception:
        return {"failure": traceback.format_exc()}


def _checking(settings: dict[str, Any]) -> Callable[[Any], Verdict]:
    sampling = Sampling.from_settings(settings)
    return lambda job: check_video(Path(job), sampling)


def _caching(settings: dict[str, Any]) -> Callable[[Any], Verdict]:
    # Imports torch, which checking can do without.
    from garevla.data.cached_frames import caching

    return caching(settings)


_TASKS = {"check": _checking, "cache": _caching}
