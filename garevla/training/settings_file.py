"""``garevla train --config``: settings from a YAML file or a recipe."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ActionConfigFile

from garevla.recipes import find_recipe
from garevla.training.compatibility import upgrade_settings
from garevla.training.config import ConfigError


class SettingsFile(ActionConfigFile):
    """Takes the path of a YAML file, also an earlier version's, or the name of a recipe."""

    def __call__(
        self,
        parser: ArgumentParser,
        namespace: Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        settings = read_settings(str(values))
        super().__call__(  # type: ignore[no-untyped-call]
            parser, namespace, yaml.safe_dump(settings), option_string
        )


def read_settings(name: str) -> dict[str, Any]:
    """Settings by section, as :class:`garevla.training.TrainConfig` takes them.

    Args:
        name: the path of a YAML file, or else the name of a recipe.

    Raises:
        FileNotFoundError: neither; the message lists the recipes.
        ConfigError: not YAML, or not settings by section.
    """
    path = Path(name)
    if path.is_file():
        return _read(path)
    settings: dict[str, Any] = {}
    for part in find_recipe(name):
        for section, values in _read(part).items():
            settings[section] = {**settings.get(section, {}), **values}
    settings["run"]["output_dir"] = f"runs/{name}"
    return settings


def _read(path: Path) -> dict[str, Any]:
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{path} is not a YAML file: {reason}") from error
    except RecursionError:
        raise ConfigError(f"{path} is nested too deeply to be settings") from None
    if not isinstance(settings, dict):
        raise ConfigError(f"{path} must hold settings by section, got {type(settings).__name__}")
    return upgrade_settings(settings)
