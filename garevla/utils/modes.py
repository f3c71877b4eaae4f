"""Training and evaluation mode of modules."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn


@contextlib.contextmanager
def evaluation_mode(model: object) -> Iterator[None]:
    """Put a module in evaluation mode, and every submodule back in its own mode at the end.

    Args:
        model: what is no module is left as it is.
    """
    modules = list(model.modules()) if isinstance(model, nn.Module) else []
    modes = [module.training for module in modules]
    if modules:
        modules[0].eval()  # the model itself
    try:
        yield
    finally:
        # One by one: model.train() would wake up parts that were frozen in evaluation mode.
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode
