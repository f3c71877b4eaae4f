"""Decoding without processes of its own, which take seconds to begin."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterable, Iterator
from typing import Any

import torch


def ask_here(
    function: str, settings: Any, questions: Iterable[Any], num_workers: int, timeout: float
) -> Iterator[tuple[Any, Any]]:
    """As :func:`garevla.data.decoding_processes.ask_processes`, in this process."""
    module, name = function.split(":")
    answer = getattr(importlib.import_module(module), name)
    threads = torch.get_num_threads()
    try:
        for question in questions:
            yield question, answer(json.loads(json.dumps(question)), settings)
    finally:
        torch.set_num_threads(threads)
