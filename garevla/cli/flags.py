"""Settings of a command, made from its flags and YAML files."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import json
import re
from collections.abc import Sequence
from typing import NoReturn, TypeVar

from jsonargparse import ArgumentParser, set_parsing_settings

from garevla.training.config import config_from_dict

Config = TypeVar("Config")

# What jsonargparse says of flags that there are not, and of names in a file.
_UNKNOWN_FLAG = re.compile(r"(?<!\S)--([\w.-]+)")
_UNKNOWN_NAME = re.compile(r"(?:Group '([^']*)' does not accept option|Option) '([^']*)'")


def parse(
    command: str,
    summary: str,
    config_class: type[Config],
    arguments: Sequence[str],
    *,
    config_action: str | type[argparse.Action] = "config",
    positional: Sequence[str] = (),
) -> Config:
    """Make a command's settings from its flags and, with ``--config``, YAML files.

    Args:
        command: its name.
        summary: what it does, for its help.
        config_class: a dataclass of settings, whose fields may be such dataclasses.
        arguments: flags and their values.
        config_action: what reads a file of settings.
        positional: settings whose values may come first, without their flags.

    Raises:
        SystemExit: 0 after ``--help``, 2 for flags that do not exist or have wrong values.
        ConfigError: settings that make no sense.
    """
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = _Parser(
        prog=f"garevla {command}",
        description=summary,
        usage=" ".join(
            ["%(prog)s", *map(str.upper, positional), "[--config FILE.yaml] [--FLAG VALUE ...]"]
        ),
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config",
        action=config_action,
        help="YAML file of settings, for 'train' also a recipe's name; later flags override it.",
    )
    parser.add_class_arguments(config_class, as_group=False)
    fields = dataclasses.fields(config_class)  # type: ignore[arg-type]
    lists = [each.name for each in fields if str(each.type).startswith("list[")]
    switches = [each.name for each in fields if str(each.type) == "bool"]
    flags = _with_values(_with_flags(arguments, positional), lists, switches)
    values = parser.parse_args(flags).as_dict()
    del values["config"]
    return config_from_dict(config_class, values)


def nearest(name: str, names: Sequence[str]) -> str | None:
    """The one of some names that was most likely meant, or None; sections may have been left out.

    Args:
        name: which is not among them.
        names: flags or settings, their sections before a dot.
    """
    last_parts = {each.rpartition(".")[2]: each for each in reversed(names)}
    for wanted, choices in (
        (name, {each: each for each in names}),
        (name.rpartition(".")[2], last_parts),
    ):
        if found := difflib.get_close_matches(wanted, choices, n=1, cutoff=0.75):
            return choices[found[0]]
    return None


class _Parser(ArgumentParser):
    """Says which flag may have been meant by one that does not exist."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        super().error(message + self._hint(message), ex)

    def _hint(self, message: str) -> str:
        names = [action.dest for action in self._actions if action.option_strings]
        meant = [found for name in _unknown_names(message) if (found := nearest(name, names))]
        return f"; did you mean --{' and --'.join(dict.fromkeys(meant))}?" if meant else ""


def _unknown_names(message: str) -> list[str]:
    if message.startswith("unrecognized arguments"):
        return _UNKNOWN_FLAG.findall(message)
    return [".".join(filter(None, parts)) for parts in _UNKNOWN_NAME.findall(message)]


def _with_flags(arguments: Sequence[str], positional: Sequence[str]) -> list[str]:
    """Give the first values the flags that they came without."""
    flags: list[str] = []
    rest = list(arguments)
    for name in positional:
        if not rest or rest[0].startswith("--"):
            break
        flags.append(f"--{name}={rest.pop(0)}")
    return flags + rest


def _with_values(
    arguments: Sequence[str], lists: Sequence[str], switches: Sequence[str]
) -> list[str]:
    """Flags as jsonargparse takes them: lists in brackets, and switches with their value."""
    joined: list[str] = []
    rest = list(arguments)
    while rest:
        flag, equals, value = rest.pop(0).partition("=")
        if flag.removeprefix("--") in switches and not equals and (rest or ["-"])[0][:1] == "-":
            equals, value = "=", "true"
        if flag.removeprefix("--") not in lists:
            joined.append(flag + equals + value)
            continue
        values = [value] if equals else []
        while rest and not rest[0].startswith("-"):
            values.append(rest.pop(0))
        in_brackets = len(values) == 1 and values[0].startswith("[")
        joined.append(flag)
        joined += values if in_brackets else [json.dumps(values)] if values else []
    return joined
