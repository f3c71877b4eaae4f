"""The recipes, as `garevla train --config` reads them."""

from __future__ import annotations

import pytest
import yaml

from garevla.data.layouts import all_layouts
from garevla.recipes import find_recipe, recipe_names, recipe_summary
from garevla.training.config import TrainConfig, config_from_dict
from garevla.training.settings_file import read_settings
from tests.training.commands import PRINT_CONFIG, exit_code

DATASETS = ["activitynet", "didemo", "folder", "lsmdc", "msrvtt", "msvd", "vatex"]
MODES = ["discovla", "gare", "gare_discovla", "gare_float32"]
# frames, words, epochs
SHORT, LONG = (12, 32, 5), (64, 64, 10)


def read(name: str) -> TrainConfig:
    values = read_settings(name)
    values["data"] |= {"annotation_dir": "annotations", "video_dir": "videos"}
    return config_from_dict(TrainConfig, values)


def test_there_is_one_for_every_mode_and_layout() -> None:
    assert recipe_names() == [f"{mode}_{dataset}" for dataset in DATASETS for mode in MODES]
    assert set(DATASETS) <= set(all_layouts())


@pytest.mark.parametrize("name", recipe_names())
def test_recipes_have_the_sizes_in_use(name: str) -> None:
    config = read(name)
    sizes = (config.data.max_frames, config.model.context_length, config.optimizer.epochs)
    assert sizes == (LONG if name.endswith(("didemo", "activitynet")) else SHORT)
    assert config.optimizer.batch_size == 128
    assert (config.optimizer.weight_decay, config.optimizer.warmup_proportion) == (0.2, 0.1)
    layout = all_layouts()[name.rpartition("_")[2]]
    assert config.data.train_split in (None, *layout.splits)
    assert config.run.output_dir.as_posix() == f"runs/{name}"


@pytest.mark.parametrize("dataset", DATASETS)
def test_published_learning_rates(dataset: str) -> None:
    recipes = {mode: read(f"{mode}_{dataset}") for mode in MODES}
    gare = recipes["gare"].optimizer
    assert gare.learning_rate == 1e-4
    assert gare.learning_rate * gare.clip_lr_scale == pytest.approx(1e-7)
    exact = recipes["gare_float32"].optimizer
    assert 1e-6 <= exact.learning_rate * exact.clip_lr_scale <= 1e-5
    assert recipes["discovla"].optimizer.learning_rate == 6e-4
    assert recipes["discovla"].model.mode == "discovla"
    assert recipes["gare_discovla"].model.mode == "gare+discovla"


def test_published_dropout() -> None:
    for name in recipe_names():
        model = read(name).model
        if model.mode != "discovla":
            assert (model.psi, model.psi_dropout) == ("cross_attention", 0.3)
            assert model.psi_dropout_mode == "pair"


def test_the_two_files_of_a_recipe_say_different_things() -> None:
    for name in recipe_names():
        mode, dataset = (yaml.safe_load(path.read_text()) for path in find_recipe(name))
        for section in mode.keys() & dataset.keys():
            assert not mode[section].keys() & dataset[section].keys()


def test_a_recipe_says_what_it_is_and_where_its_sizes_are_from() -> None:
    for name in recipe_names():
        _, dataset = find_recipe(name)
        text = dataset.read_text(encoding="utf-8")
        assert any(f"sizes are those {source}" in text for source in ("that", "of")) or (
            "The sizes are the published ones." in text
        )
        assert recipe_summary(name).endswith(".")


def test_a_recipe_that_there_is_not_lists_those_there_are() -> None:
    message = (
        r"no such file or recipe: 'gare'; .* the modes discovla, gare, .* data sets activitynet,"
    )
    with pytest.raises(FileNotFoundError, match=message):
        find_recipe("gare")


def test_published_recipe() -> None:
    recipe = read_settings("gare_msrvtt")
    assert (recipe["data"]["max_frames"], recipe["model"]["context_length"]) == (12, 32)
    assert recipe["model"]["psi_dropout"] == 0.3
    assert recipe["optimizer"] == {
        "epochs": 5,
        "batch_size": 128,
        "learning_rate": 1e-4,
        "clip_lr_scale": 1e-3,
        "weight_decay": 0.2,
        "warmup_proportion": 0.1,
        "max_grad_norm": 1.0,
    }


def test_recipes_are_valid(capsys: pytest.CaptureFixture[str]) -> None:
    for name in recipe_names():
        assert exit_code("train", "--config", name, *PRINT_CONFIG) == 0
        printed = yaml.safe_load(capsys.readouterr().out)
        assert printed["data"]["video_dir"] == "v"
        assert printed["run"]["output_dir"] == f"runs/{name}"


def test_recipes_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("recipes") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == recipe_names()
    assert exit_code("recipes", "--help") == 0
    assert exit_code("recipes", "gare_msrvtt") == 2
