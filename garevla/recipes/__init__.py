"""Training recipes: settings that ``garevla train --config NAME`` takes by name."""

from __future__ import annotations

from pathlib import Path

_FOLDER = Path(__file__).parent


def recipe_names() -> list[str]:
    """Names of the recipes, in alphabetical order."""
    return sorted(path.stem for path in _FOLDER.glob("*.yaml"))


def find_recipe(name: str) -> Path:
    """The YAML file of a recipe.

    Raises:
        FileNotFoundError: there is no such recipe; the message lists those there are.
    """
    if name not in recipe_names():
        raise FileNotFoundError(
            f"no such file or recipe: {name!r}; the recipes are {', '.join(recipe_names())}"
        )
    return _FOLDER / f"{name}.yaml"


def recipe_summary(name: str) -> str:
    """What a recipe is: the first line of its file, a comment.

    Raises:
        FileNotFoundError: as :func:`find_recipe`.
    """
    return find_recipe(name).read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
