"""Reading pickles of containers and strings without running what they may hold.

A pickle is a program, which can call anything that Python can import. Here only those instructions
are followed that make strings, lists, tuples, sets and dictionaries; the first other one is the
end. There is nothing that could be called.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from garevla.data.splits import AnnotationError


class UnsafePickleError(AnnotationError):
    """A pickle that holds more than containers and strings."""


def read_plain_pickle(path: Path) -> Any:
    """Read a pickle of strings in lists, tuples, sets and dictionaries, of any protocol.

    Raises:
        FileNotFoundError: there is no such file.
        UnsafePickleError: it holds anything else; nothing of it has been run.
        AnnotationError: it is damaged.
    """
    if not path.is_file():
        raise FileNotFoundError(f"annotation file {path} does not exist")
    machine = _Machine()
    try:
        for opcode, argument, position in pickletools.genops(path.read_bytes()):
            instruction = _INSTRUCTIONS.get(opcode.name)
            if instruction is None:
                raise UnsafePickleError(
                    f"{path} is refused: it holds more than plain containers and strings, at byte "
                    f"{position} {opcode.name}; write the captions as JSON"
                )
            instruction(machine, argument)
        (content,) = machine.stack
    except UnsafePickleError:
        raise
    # What is missing on the stack, in the memo or in the file, and keys that are containers.
    except (ValueError, LookupError, TypeError, AttributeError, MemoryError) as error:
        raise AnnotationError(f"{path} is not a whole pickle: {error}") from error
    return content


class _Machine:
    """The stack of a pickle, the stacks below its open marks, and what it refers to again."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def mark(self, _: Any) -> None:
        self.below.append(self.stack)
        self.stack = []

    def since_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.below.pop()
        return items

    def last(self, count: int) -> list[Any]:
        if len(self.stack) < count:
            raise ValueError("its stack is empty")
        items = self.stack[-count:]
        del self.stack[-count:]
        return items

    def top(self, kind: type[Any]) -> Any:
        if not isinstance(self.stack[-1], kind):
            raise TypeError(f"a {type(self.stack[-1]).__name__} is no {kind.__name__}")
        return self.stack[-1]

    def put(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def extend(self, items: list[Any]) -> None:
        self.top(list).extend(items)

    def add(self, items: list[Any]) -> None:
        self.top(set).update(map(_text, items))

    def update(self, items: list[Any]) -> None:
        values = self.top(dict)
        for key, value in zip(items[::2], items[1::2], strict=True):
            values[_text(key)] = value

    def make_dict(self) -> None:
        items = self.since_mark()
        self.push({})
        self.update(items)


def _text(value: Any) -> str:
    """A string, as every key and element of a set must be: containers cannot be hashed safely."""
    if not isinstance(value, str):
        raise TypeError(f"a {type(value).__name__} is a key, or in a set")
    return value


def _nothing(machine: _Machine, argument: Any) -> None:
    pass


def _push(machine: _Machine, argument: Any) -> None:
    machine.push(argument)


_Instruction = Callable[[_Machine, Any], None]
_INSTRUCTIONS: dict[str, _Instruction] = {
    **dict.fromkeys(("PROTO", "FRAME", "STOP"), _nothing),
    **dict.fromkeys(
        # The last three are strings of Python 2.
        (
            *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
            *("STRING", "BINSTRING", "SHORT_BINSTRING"),
        ),
        _push,
    ),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "EMPTY_SET": lambda machine, _: machine.push(set()),
    "MARK": _Machine.mark,
    "LIST": lambda machine, _: machine.push(machine.since_mark()),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.since_mark())),
    "DICT": lambda machine, _: machine.make_dict(),
    "FROZENSET": lambda machine, _: machine.push(frozenset(map(_text, machine.since_mark()))),
    "TUPLE1": lambda machine, _: machine.push(tuple(machine.last(1))),
    "TUPLE2": lambda machine, _: machine.push(tuple(machine.last(2))),
    "TUPLE3": lambda machine, _: machine.push(tuple(machine.last(3))),
    "APPEND": lambda machine, _: machine.extend(machine.last(1)),
    "APPENDS": lambda machine, _: machine.extend(machine.since_mark()),
    "SETITEM": lambda machine, _: machine.update(machine.last(2)),
    "SETITEMS": lambda machine, _: machine.update(machine.since_mark()),
    "ADDITEMS": lambda machine, _: machine.add(machine.since_mark()),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), _Machine.put),
    "MEMOIZE": lambda machine, _: machine.put(len(machine.memo)),
    **dict.fromkeys(
        ("GET", "BINGET", "LONG_BINGET"), lambda machine, index: machine.push(machine.memo[index])
    ),
}
