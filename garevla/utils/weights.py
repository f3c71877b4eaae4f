"""Whether weights are those of a module, in a sentence."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn


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
