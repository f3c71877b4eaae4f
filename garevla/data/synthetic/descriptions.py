"""A small world of colored shapes: what a clip shows, in words.

What happens in a clip is seen in the order of its frames only: every description has an order
twin (:meth:`ClipDescription.order_twin`) whose frames, in any order, look the same.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (230, 35, 35),
    "green": (40, 190, 60),
    "blue": (45, 90, 250),
    "yellow": (245, 225, 40),
    "pink": (250, 105, 205),
    "white": (245, 245, 245),
    "orange": (250, 140, 20),
    "cyan": (40, 220, 230),
}

# Radius as a share of the frame's side, at the start and the end of growing too.
RADII = {"small": 0.12, "large": 0.24}

OPPOSITES = {
    "right": "left",
    "left": "right",
    "down": "up",
    "up": "down",
    "grows": "shrinks",
    "shrinks": "grows",
    "appears": "vanishes",
    "vanishes": "appears",
}
MOTIONS = tuple(OPPOSITES)
# Axis (0 across, 1 down), and whether its coordinate rises.
MOVES = {"right": (0, 1), "left": (0, 0), "down": (1, 1), "up": (1, 0)}
GROWTH = ("grows", "shrinks")

SIZE_WORDS = {"small": ("small", "little"), "large": ("large", "big")}
_MOTION_WORDS = {
    "right": ("moves from left to right", "moves to the right", "goes right"),
    "left": ("moves from right to left", "moves to the left", "goes left"),
    "down": ("moves from top to bottom", "moves down", "goes down"),
    "up": ("moves from bottom to top", "moves up", "goes up"),
    "grows": ("grows", "gets bigger", "becomes larger"),
    "shrinks": ("shrinks", "gets smaller", "becomes smaller"),
    "appears": ("appears", "shows up", "comes into view"),
    "vanishes": ("disappears", "vanishes", "goes away"),
}
_BACK_WORDS = ("then goes back", "then comes back", "then returns")
_RETURN_WORDS = {
    **dict.fromkeys(MOVES, _BACK_WORDS),
    "grows": ("then grows again", "then gets bigger again", "then becomes larger again"),
    "shrinks": ("then shrinks again", "then gets smaller again", "then becomes smaller again"),
    "appears": ("then appears again", "then shows up again", "then comes back"),
    "vanishes": ("then disappears again", "then vanishes again", "then goes away again"),
}
_SEQUENCE_WORDS = ("first {}, then {}", "{} appears, then {}", "{}, and after that {}")


class Thing(NamedTuple):
    """A shape; its size is None where the clip changes it."""

    color: str
    shape: str
    size: str | None


class ClipDescription(NamedTuple):
    """What a clip means, whatever its background, positions and speed.

    Attributes:
        things: one thing, which moves, or two, shown one after the other.
        motions: of a single thing: one motion, or two in order; of two things: none.
    """

    things: tuple[Thing, ...]
    motions: tuple[str, ...] = ()

    @property
    def story(self) -> str:
        """``"single"``, ``"return"`` (there and back), ``"turn"`` or ``"sequence"``."""
        if len(self.things) == 2:
            return "sequence"
        if len(self.motions) == 1:
            return "single"
        return "return" if OPPOSITES[self.motions[0]] == self.motions[1] else "turn"

    @property
    def attributes(self) -> frozenset[str]:
        """All single values: colors, shapes, sizes and motions, and the story."""
        values = {self.story, *self.motions}
        for thing in self.things:
            values.update(value for value in thing if value is not None)
        return frozenset(values)

    def order_twin(self) -> ClipDescription:
        """Return the description that needs the order of frames to be told apart from this."""
        if self.story == "sequence":
            return self._replace(things=self.things[::-1])
        if self.story == "return":
            return self._replace(motions=self.motions[::-1])
        return self._replace(motions=tuple(OPPOSITES[m] for m in reversed(self.motions)))

    def caption(self, generator: np.random.Generator) -> str:
        """Put the description in words; the generator chooses among phrases of one meaning."""
        nouns = [_noun(thing, generator) for thing in self.things]
        if self.story == "sequence":
            return _choose(_SEQUENCE_WORDS, generator).format(*nouns)
        first, *rest = self.motions
        text = f"{nouns[0]} {_choose(_MOTION_WORDS[first], generator)}"
        if self.story == "return":
            text += f", {_choose(_RETURN_WORDS[rest[0]], generator)}"
        elif self.story == "turn":
            text += f", then {_choose(_MOTION_WORDS[rest[0]], generator)}"
        return text


def all_descriptions(
    colors: tuple[str, ...],
    shapes: tuple[str, ...],
    sizes: tuple[str, ...],
    motions: tuple[str, ...],
) -> list[ClipDescription]:
    """Every description with these values, in a fixed order.

    Two things in sequence differ in color and in shape.
    """
    things = [Thing(c, s, z) for c in colors for s in shapes for z in sizes]
    sizeless = [Thing(c, s, None) for c in colors for s in shapes]
    ways: list[tuple[str, ...]] = [(motion,) for motion in motions]
    ways += [(m, OPPOSITES[m]) for m in motions if OPPOSITES[m] in motions]
    moves = [motion for motion in motions if motion in MOVES]
    ways += [(a, b) for a in moves for b in moves if MOVES[a][0] != MOVES[b][0]]
    of_one_thing = [
        ClipDescription((thing,), way)
        for way in ways
        for thing in (sizeless if way[0] in GROWTH else things)
    ]
    of_two_things = [
        ClipDescription((a, b))
        for a in things
        for b in things
        if a.color != b.color and a.shape != b.shape
    ]
    return of_one_thing + of_two_things


def _noun(thing: Thing, generator: np.random.Generator) -> str:
    size = "" if thing.size is None else f"{_choose(SIZE_WORDS[thing.size], generator)} "
    article = "an" if not size and thing.color[0] in "aeiou" else "a"
    return f"{article} {size}{thing.color} {thing.shape}"


def _choose(phrases: tuple[str, ...], generator: np.random.Generator) -> str:
    return phrases[generator.integers(len(phrases))]
