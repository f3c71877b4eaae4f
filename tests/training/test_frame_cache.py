"""Training and evaluating on cached frames, with the numbers of decoding."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from garevla import cli
from garevla.data import FrameCacheError, Sampling, cache_frames, caching, dataset
from garevla.data.video_files import find_all_videos
from garevla.training import train
from garevla.training.config import TrainConfig
from garevla.training.evaluate import evaluate_checkpoint
from garevla.training.evaluation_settings import EvaluateConfig
from tests.data.decoding import ask_here
from tests.training.runs import assert_same_end


@pytest.fixture
def cache(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The frames of all videos, as runs of these tests want them."""

    monkeypatch.setattr(caching, "ask_processes", ask_here)
    videos = find_all_videos(dataset / "videos")
    options = {"sampling": Sampling(4), "image_size": 32, "progress": False}
    assert cache_frames(videos, tmp_path / "cache", **options).num_new == 24
    return tmp_path / "cache"


def test_a_run_and_an_evaluation_give_the_numbers_of_decoding(
    make_config: Callable[..., TrainConfig],
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one_epoch = {"epochs": 1}
    decoded = make_config("decoded", optimizer=one_epoch)
    cached = make_config("cached", optimizer=one_epoch, data={"frame_cache": str(cache)})
    expected = train(decoded)
    # Of no use with cached frames; would find that videos are decoded.
    cached.data.check_videos = True
    monkeypatch.setattr(dataset, "read_frames", None)
    monkeypatch.setattr("garevla.data.check.try_decoding", None)
    assert train(cached) == expected
    assert_same_end(decoded, cached)

    checkpoint = cached.run.output_dir / "last.pt"
    settings = {"checkpoint": checkpoint, "device": "cpu", "num_workers": 0}
    found = evaluate_checkpoint(EvaluateConfig(**settings, frame_cache=cache), progress=False)
    assert found.metrics == expected
    # Unless asked for, the files are read.
    with pytest.raises(TypeError, match="NoneType"):
        evaluate_checkpoint(EvaluateConfig(**settings, check_videos=False), progress=False)


def test_a_cache_that_does_not_fit_stops_a_run(
    make_config: Callable[..., TrainConfig], cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = {"frame_cache": str(cache), "max_frames": 5}
    with pytest.raises(FrameCacheError, match="max_frames 4, not 5"):
        train(make_config("run", data=data))
    config = make_config("run", data={"frame_cache": str(cache.parent / "nothing")})
    with pytest.raises(FrameCacheError, match="nothing has no frames of 16 of 16 videos"):
        train(config)
    flags = {
        "--data.annotation_dir": config.data.annotation_dir,
        "--data.video_dir": config.data.video_dir,
        "--data.frame_cache": cache,
        "--model.name": "tiny",
        "--model.pretrained": "null",
        "--run.output_dir": cache.parent / "command",
        "--run.device": "cpu",
    }
    assert cli.main(["train", *(f"{flag}={value}" for flag, value in flags.items())]) == 2
    assert "error: " in (message := capsys.readouterr().err)
    assert "the frames were taken with max_frames 4, not 12" in message
