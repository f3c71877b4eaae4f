"""Which of open_clip's models fit which mode, told from their configs; no model is built."""

from __future__ import annotations

from dataclasses import dataclass

import open_clip

from garevla.encoders.model_config import (
    adaptation_obstacles,
    context_length,
    describe_towers,
    image_size,
    named_config,
    obstacles,
    word_obstacle,
)


@dataclass(frozen=True)
class Fit:
    """What models with the same kinds of towers can be used for.

    Attributes:
        image_tower, text_tower: in a few words.
        obstacles: why not in any mode; mostly empty.
        adaptation_obstacles: why not with DiscoVLA.
        word_obstacle: why videos cannot be corrected from the words of texts, or None.
    """

    image_tower: str
    text_tower: str
    obstacles: tuple[str, ...]
    adaptation_obstacles: tuple[str, ...]
    word_obstacle: str | None

    def fits(self, mode: str) -> bool:
        """Whether a mode takes the models."""
        return not self.obstacles and (mode == "gare" or not self.adaptation_obstacles)


@dataclass(frozen=True)
class ModelEntry:
    """A model of open_clip.

    Attributes:
        name: as ``model.name`` takes it.
        fit: what it can be used for.
        image_size: side of its images, in pixels.
        dim: D, the dimension of its features.
        context_length: the most tokens of a text.
        timm_name, tokenizer: names of the image tower in timm and of the tokenizer on Hugging Face;
            empty for open_clip's own.
        pretrained: names of its weights, as ``model.pretrained`` takes them.
    """

    name: str
    fit: Fit
    image_size: int
    dim: int
    context_length: int
    timm_name: str
    tokenizer: str
    pretrained: tuple[str, ...]

    def is_of(self, family: str) -> bool:
        """Whether a text occurs in what the model is, in upper or lower case."""
        towers = f"{self.fit.image_tower}; {self.fit.text_tower}"
        words = (self.name, self.timm_name, self.tokenizer, towers)
        return family.lower() in "\n".join(words).lower()


def list_models() -> list[ModelEntry]:
    """All models that open_clip knows by name."""
    return [model_entry(name) for name in open_clip.list_models()]


def model_entry(name: str) -> ModelEntry:
    """One of them.

    Raises:
        ValueError: there is no such model.
    """
    config = named_config(name)
    fit = Fit(
        *describe_towers(config),
        tuple(obstacles(config)),
        tuple(adaptation_obstacles(config)),
        word_obstacle(config),
    )
    return ModelEntry(
        name,
        fit,
        image_size(config),
        config["embed_dim"],
        context_length(config),
        config["vision_cfg"].get("timm_model_name", ""),
        config["text_cfg"].get("hf_tokenizer_name", ""),
        tuple(open_clip.list_pretrained_tags_by_model(name)),
    )


def by_fit(models: list[ModelEntry]) -> dict[Fit, list[ModelEntry]]:
    """Models of the same kinds of towers together; those that fit most first."""
    groups: dict[Fit, list[ModelEntry]] = {}
    for model in models:
        groups.setdefault(model.fit, []).append(model)
    return dict(sorted(groups.items(), key=_misfit))


def _misfit(group: tuple[Fit, list[ModelEntry]]) -> tuple[int, int]:
    fit, models = group
    return len(fit.obstacles) + len(fit.adaptation_obstacles), -len(models)
