"""Import of packages that not all parts need."""

from __future__ import annotations

import importlib
from types import ModuleType


def require(module: str, extra: str = "video") -> ModuleType:
    """Import a package of an extra.

    Raises:
        ImportError: it is not installed, or does not work here.
    """
    try:
        return importlib.import_module(module)
    # A shared library that does not load is an OSError.
    except (ImportError, OSError) as error:
        package = module.partition(".")[0]
        raise ImportError(
            f'{package} cannot be imported: pip install "garevla[{extra}]". Reason: {error}'
        ) from error
