from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import yaml

from garevla.data.synthetic import SyntheticConfig, generate_dataset
from garevla.training import loop, train
from garevla.training.config import TrainConfig, config_from_dict

SMALL_CLIP = {
    "embed_dim": 16,
    "quick_gelu": True,
    "vision_cfg": {
        "image_size": 32,
        "layers": 1,
        "width": 16,
        "head_width": 8,
        "patch_size": 16,
    },
    "text_cfg": {
        "context_length": 24,
        "vocab_size": 49408,
        "width": 16,
        "heads": 2,
        "layers": 1,
    },
}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _no_debugging(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else commands raise the errors that they print."""
    monkeypatch.delenv("GAREVLA_DEBUG", raising=False)


@pytest.fixture
def no_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing them takes longer than these runs."""
    monkeypatch.setattr(loop, "draw_curves", lambda records, path: None)


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generated data set of 24 videos, 16 of them with 32 captions for training."""
    root = tmp_path_factory.mktemp("dataset")
    config = SyntheticConfig(captions_per_video=(2, 2))
    generate_dataset(root, num_train=16, num_test=8, config=config)
    write_model(root)
    return root


def write_model(root: Path) -> None:
    """The settings of a CLIP of a few thousand weights, where small_config looks for them."""
    (root / "model.json").write_text(json.dumps(SMALL_CLIP))


def small_config(dataset: Path, output_dir: Path, **sections: dict) -> TrainConfig:
    """Settings of a run of seconds, changed by ``section={"setting": value}``."""
    values = {
        "data": {
            "annotation_dir": str(dataset / "annotations"),
            "video_dir": str(dataset / "videos"),
            "max_frames": 4,
            "num_workers": 0,
            "check_videos": False,
            "keep_in_memory": True,
        },
        "model": {
            "mode": "gare",
            "name": str(dataset / "model.json"),
            "pretrained": None,
            "temporal_layers": 1,
            "context_length": 16,
        },
        "optimizer": {
            "epochs": 2,
            "batch_size": 8,
            "learning_rate": 1e-3,
            "clip_lr_scale": 1.0,
        },
        "run": {
            "output_dir": str(output_dir),
            "device": "cpu",
            "save_every_steps": 0,
        },
    }
    for section, settings in sections.items():
        values.setdefault(section, {}).update(settings)
    return config_from_dict(TrainConfig, values)


@pytest.fixture
def make_config(dataset: Path, tmp_path: Path) -> Callable[..., TrainConfig]:
    """``make_config("name", section={"setting": value})``: a run in tmp_path/name."""
    return lambda name, **sections: small_config(dataset, tmp_path / name, **sections)


@pytest.fixture
def train_flags(make_config: Callable[..., TrainConfig]) -> list[str]:
    """``garevla train`` of the settings of make_config("run")."""
    path = make_config("x").run.output_dir.parent / "small.yaml"
    path.write_text(yaml.safe_dump(make_config("run").as_dict()))
    return ["train", "--config", str(path)]


@pytest.fixture(scope="session")
def uninterrupted(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """A finished run, which saved every 2 steps; not to be changed."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("runs") / "uninterrupted"
    config = small_config(dataset, folder, run={"save_every_steps": 2})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "draw_curves", lambda records, path: None)
        train(config)
    return config


@pytest.fixture
def finished(uninterrupted: TrainConfig, tmp_path: Path) -> TrainConfig:
    """A copy of the finished run."""
    config = copy.deepcopy(uninterrupted)
    config.run.output_dir = tmp_path / "finished"
    shutil.copytree(uninterrupted.run.output_dir, config.run.output_dir)
    return config
