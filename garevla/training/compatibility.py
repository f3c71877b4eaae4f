"""Files that earlier versions wrote, in the names of this one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def upgrade_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a training run, by section, as :class:`garevla.training.TrainConfig` takes them.

    Args:
        settings: of this version or an earlier one, whole or in part; left as they are.
    """
    upgraded = dict(settings)
    if "optimiser" in upgraded:
        upgraded["optimizer"] = upgraded.pop("optimiser")
    if isinstance(upgraded.get("model"), Mapping):
        upgraded["model"] = dict(upgraded["model"])
        # It had one value, which is what the model does.
        upgraded["model"].pop("psi_dropout_mode", None)
    return upgraded


def upgrade_checkpoint(state: Mapping[str, Any]) -> dict[str, Any]:
    """Content of a checkpoint under the keys that this version reads and writes."""
    upgraded = dict(state)
    if "optimiser" in upgraded:
        upgraded["optimizer"] = upgraded.pop("optimiser")
    if "config" in upgraded:
        upgraded["config"] = upgrade_settings(upgraded["config"])
    return upgraded
