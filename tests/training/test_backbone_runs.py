"""Runs with backbones of several families: trained, saved, loaded again, evaluated, searched."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from garevla.data import (
    FrameCacheError,
    Resizing,
    cache_frames,
    cached_frames,
    caching,
    load_msrvtt,
)
from garevla.training import evaluate_checkpoint, train
from garevla.training.checkpoint import load_checkpoint
from garevla.training.config import TrainConfig
from garevla.training.evaluation_settings import EvaluateConfig
from garevla.training.model import build_model, load_model
from tests.encoders.small_models import small_timm, write_small


@pytest.fixture(autouse=True)
def _small_timm(no_curves: None) -> Iterator[None]:
    with small_timm():
        yield


def small_model(family: str, dataset: Path, folder: Path) -> str:
    """The config of a small model that knows the words of the made captions."""
    split = load_msrvtt(dataset / "annotations", dataset / "videos", "train-9k")
    return write_small(family, folder, [caption.text for caption in split.captions])


def decode_here(
    function: str, settings: Any, questions: Iterable[Any], num_workers: int, timeout: float
) -> Iterator[tuple[Any, Any]]:
    """In the place of other processes, which take seconds to begin."""
    assert function == "garevla.data.cached_frames:cache"
    for question in questions:
        yield question, cached_frames.cache(question, json.loads(json.dumps(settings)))


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("ViT-B-16-SigLIP2", {"corrects": "video"}),
        ("MobileCLIP2-S0", {"freeze_clip": True}),
        ("coca_ViT-B-32", {}),
        ("xlm-roberta-base-ViT-B-32", {}),
        ("ViT-H-14-worldwide", {"mode": "gare+discovla", "vision_fusion_blocks": 1}),
    ],
)
def test_a_run_is_loaded_and_evaluated(
    family: str,
    settings: dict[str, object],
    make_config: Callable[..., TrainConfig],
    dataset: Path,
    tmp_path: Path,
) -> None:
    config = make_config(
        "run",
        model={"name": small_model(family, dataset, tmp_path), **settings},
        optimizer={"epochs": 1},
    )
    metrics = train(config)
    checkpoint = config.run.output_dir / "last.pt"
    # The model is built again of its config, and all weights come from the checkpoint.
    evaluated = evaluate_checkpoint(EvaluateConfig(checkpoint=checkpoint, num_workers=0))
    assert evaluated.metrics == metrics
    weights = load_checkpoint(checkpoint)["model"]
    torch.manual_seed(config.run.seed)
    start = build_model(config).state_dict()
    # That does not train, and neither do BatchNorm's statistics.
    fixed = ("logit_bias", "running_mean", "running_var")
    frozen = config.model.freeze_clip or config.model.mode != "gare"
    for name, value in weights.items():
        if name.startswith("encoder.clip.") and (frozen or any(part in name for part in fixed)):
            assert torch.equal(value, start[name]), name
    changed = [name for name, value in weights.items() if not torch.equal(value, start[name])]
    for tower in ("encoder.clip.visual.", "encoder.clip.t"):
        assert any(name.startswith(tower) for name in changed) == (not frozen)


def test_images_are_those_of_the_model_wherever_they_come_from(
    make_config: Callable[..., TrainConfig],
    dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(caching, "ask_processes", decode_here)
    name = small_model("ViT-B-16-SigLIP2", dataset, tmp_path)
    # As open_clip_config.json beside published weights says it.
    images = {"mean": [0.5] * 3, "std": [0.25] * 3, "resize_mode": "squash"}
    architecture = json.loads(Path(name).read_text())
    Path(name).write_text(json.dumps({"model_cfg": architecture, "preprocess_cfg": images}))
    settings = {"model": {"name": name}, "optimizer": {"epochs": 1}}
    metrics = train(make_config("decoded", **settings))
    encoder = load_model(tmp_path / "decoded" / "last.pt")[0].encoder
    assert encoder.resizing == Resizing(32, "squash")
    assert (encoder.image_mean, encoder.image_std) == ((0.5,) * 3, (0.25,) * 3)
    videos = {path.stem: path for path in (dataset / "videos").iterdir()}
    sampling = make_config("none").data.frame_sampling
    for folder, resizing in (("usual", Resizing(32)), ("squashed", encoder.resizing)):
        cache_frames(
            videos,
            tmp_path / folder,
            sampling=sampling,
            progress=False,
            **resizing.as_settings(),
        )
    cached = make_config("cached", data={"frame_cache": str(tmp_path / "squashed")}, **settings)
    assert train(cached) == metrics
    wrong = make_config("wrong", data={"frame_cache": str(tmp_path / "usual")}, **settings)
    with pytest.raises(FrameCacheError, match=r"resize_mode 'shortest', not 'squash'.*--resize_mo"):
        train(wrong)
