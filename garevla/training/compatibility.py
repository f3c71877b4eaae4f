"""Files that earlier versions wrote, in the names of this one.

What is neither an old name nor a new one is left for the reader to refuse.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def upgrade_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a training run, by section, as :class:`garevla.training.TrainConfig` takes them.

    Args:
        settings: of this version or an earlier one, whole or in part; not changed.
    """
    return _with_optimizer(settings)


def upgrade_checkpoint(state: Mapping[str, Any]) -> dict[str, Any]:
    """Content of a checkpoint under the keys that this version reads and writes."""
    upgraded = _with_optimizer(state)
    if isinstance(upgraded.get("config"), Mapping):
        upgraded["config"] = upgrade_settings(upgraded["config"])
    return upgraded


def _with_optimizer(values: Mapping[str, Any]) -> dict[str, Any]:
    """A copy in which ``optimiser`` is called ``optimizer``, unless that is there as well."""
    if "optimizer" in values:
        return dict(values)
    return {("optimizer" if name == "optimiser" else name): values[name] for name in values}
