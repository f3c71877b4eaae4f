"""``garevla models``."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, get_args

if TYPE_CHECKING:
    from garevla.encoders.catalog import Fit, ModelEntry

SUMMARY = "list open_clip's models, and which modes take them"

NOTHING_FOUND = 1
_WIDTH = 110


def run(arguments: list[str]) -> int:
    """Print the models by kind of towers; returns 1 where there is none."""
    from garevla.cli.flags import parse
    from garevla.training.models_settings import ModelsConfig

    config = parse("models", SUMMARY, ModelsConfig, arguments, positional=["family"])
    from garevla.encoders.catalog import by_fit, list_models

    models = [
        model
        for model in list_models()
        if (config.mode is None or model.fit.fits(config.mode))
        and (config.family is None or model.is_of(config.family))
    ]
    for fit, same in by_fit(models).items():
        print("\n".join(_lines(fit, same)) + "\n")
    print(f"{len(models)} models")
    return 0 if models else NOTHING_FOUND


def _lines(fit: Fit, models: list[ModelEntry]) -> list[str]:
    from garevla.training.config import Mode

    modes = [mode for mode in get_args(Mode) if fit.fits(mode)]
    lines = [
        f"towers: {fit.image_tower}; {fit.text_tower}",
        f"  modes: {', '.join(modes) or 'none'}",
    ]
    reasons = fit.obstacles or fit.adaptation_obstacles
    if reasons:
        others = ", ".join(mode for mode in get_args(Mode) if mode not in modes)
        lines += _wrapped(f"  not {others}: {'; '.join(reasons)}")
    if fit.word_obstacle:
        lines += _wrapped(f"  not model.corrects video: {fit.word_obstacle}")
    width = max(len(model.name) for model in models)
    lines.append(f"    {'name':{width}}  image     D  tokens  pretrained")
    for model in models:
        row = f"    {model.name:{width}}  {model.image_size:5} {model.dim:5}  "
        row += f"{model.context_length:6}  "
        tags = textwrap.wrap(
            ", ".join(model.pretrained) or "-", _WIDTH - len(row), break_on_hyphens=False
        )
        lines += [(row if tag is tags[0] else " " * len(row)) + tag for tag in tags]
    return lines


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, subsequent_indent="    ", break_on_hyphens=False)
