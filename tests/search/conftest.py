from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("av")
pytest.importorskip("open_clip")
indexing = importlib.import_module("garevla.search.indexing")
settings = importlib.import_module("garevla.search.settings")

Index = Callable[..., Any]


@pytest.fixture(scope="session")
def write_clip() -> Callable[..., Path]:
    return importlib.import_module("tests.data.clips").write_clip


@pytest.fixture
def decoding_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decodes in this process, without the seconds that others take to begin."""

    def ask(
        function: str, settings: Any, questions: Iterable[str], num_workers: int, timeout: float
    ) -> Iterator[tuple[str, Any]]:
        module, name = function.split(":")
        answer = getattr(importlib.import_module(module), name)
        for question in questions:
            yield question, json.loads(json.dumps(answer(question, settings)))

    monkeypatch.setattr(indexing, "ask_processes", ask)


@pytest.fixture
def index(decoding_here: None) -> Index:
    """Index a folder with the tiny model, segments of 2 seconds."""

    def run(video_dir: Path, output: Path, **options: Any) -> Any:
        defaults: dict[str, Any] = (
            {}
            if (output / "library.sqlite").exists()
            else {
                "model": "tiny",
                "segment_seconds": 2.0,
                "overlap_seconds": 0.5,
                "max_frames": 3,
                "frames_per_second": 2.0,
            }
        )
        config = settings.IndexConfig(
            video_dir=video_dir, output=output, device="cpu", **{**defaults, **options}
        )
        return indexing.index_videos(config, progress=False)

    return run
