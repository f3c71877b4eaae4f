"""The table of data set layouts.

A layout is one file: it derives a class from :class:`Layout` and registers an instance under a
name, which the setting ``data.layout`` selects. The files in this folder are imported when a
layout is first asked for; a file elsewhere is imported by whoever uses it.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
from pathlib import Path

from garevla.data.layouts.base import Layout
from garevla.data.splits import AnnotationError

DEFAULT_LAYOUT = "auto"

_LAYOUTS: dict[str, Layout] = {}


def register_layout(name: str, layout: Layout) -> None:
    """Add a layout to the table.

    Raises:
        ValueError: there is another one of this name.
    """
    if name in _LAYOUTS or name == DEFAULT_LAYOUT:
        raise ValueError(f"layout {name!r} is registered already")
    _LAYOUTS[name] = layout


def all_layouts() -> dict[str, Layout]:
    """All layouts by name, sorted."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    return dict(sorted(_LAYOUTS.items()))


def layout(name: str) -> Layout:
    """Return the layout of a name.

    Raises:
        ValueError: there is none; the message lists all names.
    """
    layouts = all_layouts()
    if name not in layouts:
        raise ValueError(f"layout must be one of {['auto', *layouts]}, got {name!r}")
    return layouts[name]


def layout_of(name: str, annotation_dir: str | os.PathLike[str]) -> Layout:
    """Return the layout of a name, or for ``"auto"`` the one that a folder looks like.

    Raises:
        ValueError: there is no layout of this name.
        FileNotFoundError: there is no such folder.
        AnnotationError: it looks like no layout, or like several; the message says what each looks
            for.
    """
    return layout(name_of(name, annotation_dir))


def name_of(name: str, annotation_dir: str | os.PathLike[str]) -> str:
    """Return a name, or for ``"auto"`` that of the layout that a folder looks like.

    Raises:
        FileNotFoundError, AnnotationError: as :func:`layout_of`.
    """
    return detect_layout(annotation_dir) if name == DEFAULT_LAYOUT else name


def detect_layout(annotation_dir: str | os.PathLike[str]) -> str:
    """Return the name of the layout that a folder looks like.

    Raises:
        FileNotFoundError, AnnotationError: as :func:`layout_of`.
    """
    folder = Path(annotation_dir)
    if not folder.is_dir():
        raise FileNotFoundError(f"annotation folder {folder} does not exist or is not a folder")
    layouts = all_layouts()
    found = [name for name, each in layouts.items() if each.recognizes(folder)]
    if len(found) == 1:
        return found[0]
    expected = "; ".join(
        f"{name}: {' or '.join(each.looks_for)}"
        for name, each in layouts.items()
        if each.looks_for and (name in found or not found)
    )
    problem = f"may be {' or '.join(found)}; name one" if found else "is of no layout known"
    raise AnnotationError(f"{folder} {problem} (setting 'layout'). They look for {expected}")
