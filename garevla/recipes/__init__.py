"""Training recipes: settings that ``garevla train --config NAME`` takes by name.

A recipe is a mode and a data set: ``gare_didemo`` is ``modes/gare.yaml`` with
``datasets/didemo.yaml``, which say different things. Each begins with comments that say what it is,
in one line, and where its values are from.
"""

from __future__ import annotations

from pathlib import Path

_FOLDER = Path(__file__).parent


def recipe_names() -> list[str]:
    """Names of the recipes, by data set."""
    modes, datasets = (_names_in(folder) for folder in ("modes", "datasets"))
    return [f"{mode}_{dataset}" for dataset in datasets for mode in modes]


def find_recipe(name: str) -> tuple[Path, Path]:
    """The YAML files of a recipe: its mode's and its data set's.

    Raises:
        FileNotFoundError: there is no such recipe; the message lists those there are.
    """
    if name not in recipe_names():
        modes, datasets = (", ".join(_names_in(folder)) for folder in ("modes", "datasets"))
        raise FileNotFoundError(
            f"no such file or recipe: {name!r}; the recipes are MODE_DATASET, with the modes "
            f"{modes} and the data sets {datasets}"
        )
    mode, _, dataset = name.rpartition("_")
    return _FOLDER / "modes" / f"{mode}.yaml", _FOLDER / "datasets" / f"{dataset}.yaml"


def recipe_summary(name: str) -> str:
    """What a recipe is: the first lines of its files, which are comments.

    Raises:
        FileNotFoundError: as :func:`find_recipe`.
    """
    heads = (path.read_text(encoding="utf-8").splitlines()[0] for path in find_recipe(name))
    return " ".join(head.removeprefix("# ") for head in heads)


def _names_in(folder: str) -> list[str]:
    return sorted(path.stem for path in (_FOLDER / folder).glob("*.yaml"))
