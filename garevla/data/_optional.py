"""Import of packages that only the data part needs."""

from __future__ import annotations

import importlib
from types import ModuleType


def require(module: str) -> ModuleType:
    """Import a package of the ``video`` extra.

    Raises:
        ImportError: it is not installed, or does not work here.
    """
    try:
        return importlib.import_module(module)
    # A shared library that does not load is an OSError.
    except (ImportError, OSError) as error:
        package = module.partition(".")[0]
        hint = (
            " (decord has wheels for Linux and Windows on x86-64 only; elsewhere it has to be "
            "built from source)"
            if package == "decord"
            else ""
        )
        raise ImportError(
            f'{package} cannot be imported: pip install "garevla[video]"{hint}. Reason: {error}'
        ) from error
