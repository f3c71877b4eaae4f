"""A small world of coloured shapes: what a clip shows, in words and in frames.

What happens in a clip is seen in the order of its frames only: every description has an order
twin (:meth:`ClipDescription.order_twin`) whose frames, in any order, look the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

COLOURS: dict[str, tuple[int, int, int]] = {
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
_MOVES = {"right": (0, 1), "left": (0, 0), "down": (1, 1), "up": (1, 0)}
_GROWTH = ("grows", "shrinks")

_SIZE_WORDS = {"small": ("small", "little"), "large": ("large", "big")}
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
    **dict.fromkeys(_MOVES, _BACK_WORDS),
    "grows": ("then grows again", "then gets bigger again", "then becomes larger again"),
    "shrinks": ("then shrinks again", "then gets smaller again", "then becomes smaller again"),
    "appears": ("then appears again", "then shows up again", "then comes back"),
    "vanishes": ("then disappears again", "then vanishes again", "then goes away again"),
}
_SEQUENCE_WORDS = ("first {}, then {}", "{} appears, then {}", "{}, and after that {}")


class Thing(NamedTuple):
    """A shape; its size is None where the clip changes it."""

    colour: str
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
        """All single values: colours, shapes, sizes and motions, and the story."""
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
    colours: tuple[str, ...],
    shapes: tuple[str, ...],
    sizes: tuple[str, ...],
    motions: tuple[str, ...],
) -> list[ClipDescription]:
    """Every description with these values, in a fixed order.

    Two things in sequence differ in colour and in shape.
    """
    things = [Thing(c, s, z) for c in colours for s in shapes for z in sizes]
    sizeless = [Thing(c, s, None) for c in colours for s in shapes]
    ways: list[tuple[str, ...]] = [(motion,) for motion in motions]
    ways += [(m, OPPOSITES[m]) for m in motions if OPPOSITES[m] in motions]
    moves = [motion for motion in motions if motion in _MOVES]
    ways += [(a, b) for a in moves for b in moves if _MOVES[a][0] != _MOVES[b][0]]
    found = [
        ClipDescription((thing,), way)
        for way in ways
        for thing in (sizeless if way[0] in _GROWTH else things)
    ]
    found += [
        ClipDescription((a, b))
        for a in things
        for b in things
        if a.colour != b.colour and a.shape != b.shape
    ]
    return found


# ------------------------------------------------------------------------- animation


class Placed(NamedTuple):
    """A thing in a frame; position and radius as shares of the frame's side."""

    thing: Thing
    x: float
    y: float
    radius: float

    def words(self) -> str:
        """Say what and where it is."""
        size = "small" if self.radius < (RADII["small"] + RADII["large"]) / 2 else "large"
        row = "top" if self.y < 0.36 else "bottom" if self.y > 0.64 else ""
        column = "left" if self.x < 0.36 else "right" if self.x > 0.64 else ""
        if row:
            place = f"at the {row} {column}".rstrip()
        else:
            place = f"on the {column}" if column else "in the middle"
        return f"a {size} {self.thing.colour} {self.thing.shape} {place}"


@dataclass(frozen=True)
class _Path:
    """Where a thing is, how large, and when.

    Attributes:
        times: shares of the clip's length, rising.
        points: (x, y, radius) at these times, joined by straight lines.
        visible: the spans of time in which the thing is seen.
    """

    thing: Thing
    times: tuple[float, ...]
    points: np.ndarray
    visible: tuple[tuple[float, float], ...]

    def at(self, time: float) -> Placed | None:
        if not any(begin <= time < end for begin, end in self.visible):
            return None
        return Placed(self.thing, *(float(np.interp(time, self.times, v)) for v in self.points.T))


class Animation:
    """A clip: a description with the random rest (background, places, sizes, speed) filled in.

    Args:
        description: what happens.
        generator: of the rest.
    """

    def __init__(self, description: ClipDescription, generator: np.random.Generator) -> None:
        self.description = description
        self._background_level = generator.uniform(25, 110)
        self._gradient = generator.uniform(-20, 20, size=2)
        self._noise_seed = int(generator.integers(2**32))
        self._tint = {thing: generator.uniform(-14, 14, size=3) for thing in description.things}
        if description.story == "sequence":
            change = generator.uniform(0.45, 0.55)
            first, second = description.things
            self._paths = (
                _still(first, ((_BEFORE, change),), generator),
                _still(second, ((change, _AFTER),), generator),
            )
        else:
            self._paths = (_acting(*description.things, description.motions, generator),)

    def state(self, time: float) -> list[Placed]:
        """Return the visible things at a time, in shares of the clip's length (0..1)."""
        return [placed for path in self._paths if (placed := path.at(time)) is not None]

    def words(self, time: float) -> str:
        """Say what is visible at a time."""
        return " and ".join(placed.words() for placed in self.state(time)) or "nothing"

    def frames(self, num_frames: int, side: int) -> np.ndarray:
        """Draw the clip: uint8 (num_frames, side, side, 3), RGB."""
        y, x = (np.mgrid[:side, :side] + 0.5) / side
        noise = np.random.default_rng(self._noise_seed).normal(0, 3, size=(side, side))
        slope = self._gradient[0] * (x - 0.5) + self._gradient[1] * (y - 0.5)
        background = (self._background_level + slope + noise)[..., None].repeat(3, axis=2)
        clip = np.empty((num_frames, side, side, 3), dtype=np.uint8)
        for index in range(num_frames):
            image = background
            for thing, at_x, at_y, radius in self.state(index / max(1, num_frames - 1)):
                distance = _DISTANCES[thing.shape]((x - at_x) / radius, (y - at_y) / radius)
                # Half a pixel to either side of the edge is blended.
                cover = np.clip(0.5 - distance * radius * side, 0, 1)[..., None]
                image = image + cover * (COLOURS[thing.colour] + self._tint[thing] - image)
            clip[index] = np.clip(np.rint(image), 0, 255)
        return clip


# Outside the clip's times 0..1.
_BEFORE, _AFTER = -1.0, 2.0


def _acting(thing: Thing, motions: tuple[str, ...], generator: np.random.Generator) -> _Path:
    if motions[0] in ("appears", "vanishes"):
        return _still(thing, _visible(motions, generator), generator)
    begin, end = generator.uniform(0, 0.15), 1 - generator.uniform(0, 0.15)
    if len(motions) == 1:
        times: tuple[float, ...] = (begin, end)
    else:
        # As long at the turning point as at both ends together (exactly so where eight frames are
        # sampled), else the more frequent place would tell where the way began.
        times = (begin, 3 / 7 - begin, 11 / 7 - end, end)
    place = generator.uniform(0.3, 0.7, size=2)
    if motions[0] in _GROWTH:
        least, most = (RADII["small"] * generator.uniform(0.75, 0.9), _radius("large", generator))
        points = [(*place, least if motion == "grows" else most) for motion in motions]
        points.append((*place, most if motions[-1] == "grows" else least))
    else:
        radius = _radius(thing.size, generator)
        # From one side to the other, along each axis in use.
        sides = np.array([0.2, 0.8]) + generator.uniform(-0.05, 0.05, size=(2, 2))
        for motion in reversed(motions):
            axis, forwards = _MOVES[motion]
            place[axis] = sides[axis, 1 - forwards]
        points = [(*place, radius)]
        for motion in motions:
            axis, forwards = _MOVES[motion]
            place[axis] = sides[axis, forwards]
            points.append((*place, radius))
    if len(motions) == 2:
        points.insert(1, points[1])
    return _Path(thing, times, np.array(points), ((_BEFORE, _AFTER),))


def _still(
    thing: Thing, visible: tuple[tuple[float, float], ...], generator: np.random.Generator
) -> _Path:
    place = generator.uniform(0.3, 0.7, size=2)
    return _Path(thing, (0.0,), np.array([(*place, _radius(thing.size, generator))]), visible)


def _visible(
    motions: tuple[str, ...], generator: np.random.Generator
) -> tuple[tuple[float, float], ...]:
    """Spans that leave a thing seen for half of the clip, whatever the order."""
    if len(motions) == 1:
        change = generator.uniform(0.45, 0.55)
        return ((change, _AFTER),) if motions[0] == "appears" else ((_BEFORE, change),)
    first, second = 0.25 + generator.uniform(-0.03, 0.03), 0.75 + generator.uniform(-0.03, 0.03)
    if motions[0] == "appears":
        return ((first, second),)
    return ((_BEFORE, first), (second, _AFTER))


def _radius(size: str | None, generator: np.random.Generator) -> float:
    return RADII[size] * generator.uniform(0.92, 1.08)


# ------------------------------------------------------------------------- drawing

# Signed distances from a shape's edge, negative inside; a circle has radius 1.


def _circle(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.hypot(x, y) - 1


def _square(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.maximum(np.abs(x), np.abs(y)) - 0.9


def _triangle(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.maximum(y - 0.75, (np.sqrt(3) * np.abs(x) - y) / 2 - 0.6)


def _cross(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    x, y = np.abs(x), np.abs(y)
    return np.minimum(np.maximum(x - 1.05, y - 0.36), np.maximum(x - 0.36, y - 1.05))


def _ring(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.abs(np.hypot(x, y) - 0.8) - 0.25


def _bar(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.maximum(np.abs(x) - 1.15, np.abs(y) - 0.32)


_DISTANCES = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "cross": _cross,
    "ring": _ring,
    "bar": _bar,
}
SHAPES = tuple(_DISTANCES)


def _noun(thing: Thing, generator: np.random.Generator) -> str:
    size = "" if thing.size is None else f"{_choose(_SIZE_WORDS[thing.size], generator)} "
    article = "an" if not size and thing.colour[0] in "aeiou" else "a"
    return f"{article} {size}{thing.colour} {thing.shape}"


def _choose(phrases: tuple[str, ...], generator: np.random.Generator) -> str:
    return phrases[generator.integers(len(phrases))]
