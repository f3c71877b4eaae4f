"""Weights by name: out of their wrappers, in a sentence, and whether they are a module's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

_WRAPPING_KEYS = ("state_dict", "model_state_dict", "model")
# Left by DistributedDataParallel, by modules that hold the model, and by torch.compile.
_WRAPPING_PREFIXES = ("module.", "model.", "_orig_mod.")


def bare_weights(state: Any) -> dict[str, Tensor]:
    """Weights by their names in the model itself.

    Args:
        state: a state dict, or a dictionary that has one under ``state_dict``,
            ``model_state_dict`` or ``model``; names may begin with ``module.``, ``model.`` and
            ``_orig_mod.``, which compiled submodules have within, too.

    Raises:
        ValueError: no weights, or two under one name.
    """
    content = state
    while isinstance(content, Mapping) and not _has_tensors(content):
        inner = [content[key] for key in _WRAPPING_KEYS if isinstance(content.get(key), Mapping)]
        if not inner:
            break
        content = inner[0]
    if not isinstance(content, Mapping) or not _has_tensors(content):
        keys = f"keys {', '.join(map(str, content))}" if isinstance(content, Mapping) else ""
        raise ValueError(f"no weights by name: {keys or type(content).__name__}")
    weights: dict[str, Tensor] = {}
    for name, value in content.items():
        if isinstance(value, Tensor):
            bare = _bare_name(str(name))
            if bare in weights:
                raise ValueError(f"several weights are {bare}, one of them {name}")
            weights[bare] = value
    return weights


def _has_tensors(content: Mapping[Any, Any]) -> bool:
    return any(isinstance(value, Tensor) for value in content.values())


def _bare_name(name: str) -> str:
    while name.startswith(_WRAPPING_PREFIXES):
        name = name.partition(".")[2]
    return name.replace("._orig_mod.", ".")


def summary(weights: Mapping[str, Tensor]) -> str:
    """How many there are of each part, as ``clip (302), psi (26)``."""
    counts = Counter(name.partition(".")[0] for name in weights)
    return ", ".join(f"{part} ({count})" for part, count in counts.items()) or "none"


def misfit(module: nn.Module, weights: Mapping[str, Tensor]) -> str | None:
    """Why a module cannot load weights, or None.

    ``load_state_dict`` says it in a line for each of them.
    """
    own = module.state_dict()
    if not isinstance(weights, Mapping) or not all(
        isinstance(value, Tensor) for value in weights.values()
    ):
        return "it has no weights by name"
    absent = [name for name in own if name not in weights]
    unknown = [name for name in weights if name not in own]
    other_shapes = [
        f"{name}, {tuple(weights[name].shape)} and not {tuple(own[name].shape)}"
        for name in own
        if name in weights and weights[name].shape != own[name].shape
    ]
    parts = [
        f"{len(found)} {what}, such as {found[0]}"
        for what, found in (
            (f"of {len(own)} weights are absent", absent),
            ("are not known", unknown),
            ("have other shapes", other_shapes),
        )
        if found
    ]
    return "; ".join(parts) or None
