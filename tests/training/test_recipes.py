"""The recipes, as `garevla train --config` reads them."""

from __future__ import annotations

import pytest

from garevla.recipes import find_recipe, recipe_names, recipe_summary
from garevla.training.config import TrainConfig, config_from_dict
from garevla.training.settings_file import read_settings


def read(name: str) -> TrainConfig:
    values = read_settings(name)
    values["data"] |= {"annotation_dir": "annotations", "video_dir": "videos"}
    return config_from_dict(TrainConfig, values)


@pytest.mark.parametrize("name", recipe_names())
def test_recipes_have_the_published_sizes(name: str) -> None:
    config = read(name)
    assert (config.data.max_frames, config.model.context_length) == (12, 32)
    assert (config.optimizer.epochs, config.optimizer.batch_size) == (5, 128)
    assert (config.optimizer.weight_decay, config.optimizer.warmup_proportion) == (0.2, 0.1)


def test_published_learning_rates() -> None:
    recipes = {name: read(name) for name in recipe_names()}
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


def test_published_dropout() -> None:
    for name in recipe_names():
        model = read(name).model
        if model.mode != "discovla":
            assert (model.psi, model.psi_dropout) == ("cross_attention", 0.3)
            assert model.psi_dropout_mode == "pair"


def test_a_recipe_names_itself_and_says_what_it_is() -> None:
    for name in recipe_names():
        assert f"garevla train --config {name} " in find_recipe(name).read_text(encoding="utf-8")
        assert recipe_summary(name).endswith(".")


def test_a_recipe_that_there_is_not_lists_those_there_are() -> None:
    with pytest.raises(FileNotFoundError, match=r"no such file or recipe: 'gare'; .* gare_msrvtt,"):
        find_recipe("gare")
