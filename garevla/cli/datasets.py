"""``garevla datasets``."""

from __future__ import annotations

import argparse
import inspect
import textwrap

SUMMARY = "list the data sets that are understood, or count what a folder of one holds"

UNREADABLE = 1


def run(arguments: list[str]) -> int:
    """Print the layouts, or the splits of a folder; returns 1 where one cannot be read."""
    parser = argparse.ArgumentParser("garevla datasets", description=SUMMARY)
    parser.add_argument("folder", nargs="?", help="folder of the annotation files")
    parser.add_argument("--annotation_dir", dest="option", metavar="DIR", help="the same")
    parser.add_argument("--video_dir", metavar="DIR", help="also count missing and extra videos")
    parser.add_argument("--layout", default="auto", help="default: what the folder looks like")
    flags = parser.parse_args(arguments)
    if flags.folder and flags.option:
        parser.error("the folder is given twice")
    folder = flags.folder or flags.option
    if folder is not None:
        return _count(folder, flags.video_dir, flags.layout)
    if flags.video_dir or flags.layout != "auto":
        parser.error("--video_dir and --layout need the folder of the annotation files")
    _list()
    return 0


def _count(folder: str, video_dir: str | None, name: str) -> int:
    from garevla.data.layouts import DEFAULT_LAYOUT, detect_layout, layout
    from garevla.data.summary import summarize

    name = detect_layout(folder) if name == DEFAULT_LAYOUT else name
    summary = summarize(layout(name), folder, video_dir)
    print(f"{folder}: layout {name}")
    for line in summary.lines():
        print(line)
    return UNREADABLE if summary.errors or not summary.splits else 0


def _list() -> None:
    from garevla.data.layouts import all_layouts
    from garevla.recipes import recipe_names

    recipes = recipe_names()
    for name, each in all_layouts().items():
        head, _, rest = inspect.cleandoc(type(each).__doc__ or "").partition("\n\n")
        print(f"{name}: {head}".replace("``", ""))
        for paragraph in filter(None, rest.split("\n\n")):
            print(
                textwrap.fill(
                    " ".join(paragraph.split()).replace("``", ""),
                    100,
                    initial_indent="  ",
                    subsequent_indent="  ",
                )
            )
        print(f"  splits: {', '.join(each.splits)}; trained on by default: {each.train_split}")
        print(textwrap.indent(each.files, "    "))
        recipe = f"gare_{name}"
        config = f" --config {recipe}" if recipe in recipes else ""
        folders = "--data.annotation_dir annotations --data.video_dir videos"
        print(f"  garevla train{config} {folders}\n")
