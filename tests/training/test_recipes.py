"""The committed recipes, as `garevla train --config` reads them."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from garevla.training.config import TrainConfig, config_from_dict

RECIPES = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))


def read(path: Path) -> TrainConfig:
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    values["data"] |= {"annotation_dir": "annotations", "video_dir": "videos"}
    return config_from_dict(TrainConfig, values)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_have_the_published_sizes(path: Path) -> None:
    config = read(path)
    assert (config.data.max_frames, config.model.context_length) == (12, 32)
    assert (config.optimizer.epochs, config.optimizer.batch_size) == (5, 128)
    assert (config.optimizer.weight_decay, config.optimizer.warmup_proportion) == (0.2, 0.1)


def test_published_learning_rates() -> None:
    recipes = {path.stem: read(path) for path in RECIPES}
    assert recipes.keys() == {
        "gare_msrvtt",
        "gare_msrvtt_float32",
        "discovla_msrvtt",
        "gare_discovla_msrvtt",
    }
    gare = recipes["gare_msrvtt"].optimizer
    assert gare.learning_rate == 1e-4
    assert gare.learning_rate * gare.clip_lr_scale == pytest.approx(1e-7)
    exact = recipes["gare_msrvtt_float32"].optimizer
    assert 1e-6 <= exact.learning_rate * exact.clip_lr_scale <= 1e-5
    assert recipes["discovla_msrvtt"].optimizer.learning_rate == 6e-4
    assert recipes["discovla_msrvtt"].model.mode == "discovla"
    assert recipes["gare_discovla_msrvtt"].model.mode == "gare+discovla"
