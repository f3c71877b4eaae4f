"""``garevla recipes``."""

from __future__ import annotations

import argparse

SUMMARY = "list the recipes that 'garevla train --config' takes"


def run(arguments: list[str]) -> int:
    """Print the recipes' names and first lines."""
    from garevla.recipes import recipe_names, recipe_summary

    argparse.ArgumentParser("garevla recipes", description=SUMMARY).parse_args(arguments)
    width = max(len(name) for name in recipe_names())
    for name in recipe_names():
        print(f"{name:{width}}  {recipe_summary(name)}")
    return 0
