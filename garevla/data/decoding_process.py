"""What a process of :mod:`garevla.data.decoding_processes` runs: files in, verdicts out."""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

from garevla.data.frame_sampling import Sampling
from garevla.data.video import check_video


def serve() -> None:
    """Check the files named on stdin, a JSON string a line, and write a JSON object for each.

    The first line written says that it has begun. The sampling is the last argument.
    """
    sampling = Sampling.from_settings(json.loads(sys.argv[-1]))
    # What a decoder prints must not get between the answers.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    print("{}", file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(_answer(Path(json.loads(line)), sampling)), file=answers, flush=True)


def _answer(path: Path, sampling: Sampling) -> dict[str, Any]:
    try:
        return check_video(path, sampling)._asdict()
    except Exception:
        return {"failure": traceback.format_exc()}
