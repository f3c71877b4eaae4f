from __future__ import annotations

import typing
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from garevla.data import Sampling, captioning
from garevla.data.captioning import caption_videos
from tests.data.captioning.tiny_models import KINDS, SPECIAL, WORDS


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Folders of tiny captioning models with random weights."""
    root = tmp_path_factory.mktemp("models")
    (root / "vocab.txt").write_text("\n".join(SPECIAL + WORDS))

    def model(kind: str) -> str:
        transformers = pytest.importorskip("transformers")
        folder = root / kind
        if not folder.exists():
            torch.manual_seed(0)
            KINDS[kind](folder, transformers.BertTokenizer(str(root / "vocab.txt")))
        return str(folder)

    return model


@pytest.fixture(scope="session")
def videos(small_dataset: Path) -> dict[str, Path]:
    return {f"video{i}": small_dataset / "videos" / f"video{i}.mp4" for i in (3, 0, 4, 8)}


@pytest.fixture
def caption(
    models: Callable[[str], str], videos: dict[str, Path]
) -> Callable[..., captioning.CaptioningReport]:
    """caption_videos with a tiny model, in this process."""

    def run(output: Path, kind: str = "blip", **changes: typing.Any) -> captioning.CaptioningReport:
        options = {"num_beams": 2, "max_new_tokens": 5, "num_workers": 0, "progress": False}
        model = changes.pop("model", None) or models(kind)
        return caption_videos(
            changes.pop("videos", videos), output, model=model, **{**options, **changes}
        )

    return run


@pytest.fixture
def stop_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Interrupt the run when it comes to a video."""

    def stop(video_id: str) -> None:
        read = captioning.read_frames

        def read_or_stop(path: Path, sampling: Sampling) -> np.ndarray:
            if path.stem == video_id:
                raise KeyboardInterrupt
            return read(path, sampling)

        monkeypatch.setattr(captioning, "read_frames", read_or_stop)

    return stop
