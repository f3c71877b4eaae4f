"""The table of data set layouts.

A layout is one file: it derives a class from :class:`Layout` and registers an instance under a
name, which the setting ``data.layout`` selects. The files in this folder are imported when a
layout is first asked for; a file elsewhere is imported by whoever uses it.
"""

from __future__ import annotations

import importlib
import pkgutil

from garevla.data.layouts.base import Layout

DEFAULT_LAYOUT = "msrvtt"

_LAYOUTS: dict[str, Layout] = {}


def register_layout(name: str, layout: Layout) -> None:
    """Add a layout to the table.

    Raises:
        ValueError: there is another one of this name.
    """
    if name in _LAYOUTS:
        raise ValueError(f"layout {name!r} is registered already")
    _LAYOUTS[name] = layout


def layout(name: str) -> Layout:
    """Return the layout of a name.

    Raises:
        ValueError: there is none; the message lists all names.
    """
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    if name not in _LAYOUTS:
        raise ValueError(f"layout must be one of {sorted(_LAYOUTS)}, got {name!r}")
    return _LAYOUTS[name]
