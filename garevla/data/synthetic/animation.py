"""Clips of colored shapes: the frames of a description."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from garevla.data.synthetic.descriptions import COLORS, GROWTH, MOVES, RADII, ClipDescription, Thing
from garevla.data.synthetic.shapes import DISTANCES


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
        return f"a {size} {self.thing.color} {self.thing.shape} {place}"


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
            self._paths: tuple[_Path, ...] = (
                _still(first, ((_BEFORE, change),), generator),
                _still(second, ((change, _AFTER),), generator),
            )
        else:
            (thing,) = description.things
            self._paths = (_acting(thing, description.motions, generator),)

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
                distance = DISTANCES[thing.shape]((x - at_x) / radius, (y - at_y) / radius)
                # Half a pixel to either side of the edge is blended.
                cover = np.clip(0.5 - distance * radius * side, 0, 1)[..., None]
                image = image + cover * (COLORS[thing.color] + self._tint[thing] - image)
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
    if motions[0] in GROWTH:
        least, most = (RADII["small"] * generator.uniform(0.75, 0.9), _radius("large", generator))
        points = [(*place, least if motion == "grows" else most) for motion in motions]
        points.append((*place, most if motions[-1] == "grows" else least))
    else:
        radius = _radius(thing.size, generator)
        # From one side to the other, along each axis in use.
        sides = np.array([0.2, 0.8]) + generator.uniform(-0.05, 0.05, size=(2, 2))
        for motion in reversed(motions):
            axis, forwards = MOVES[motion]
            place[axis] = sides[axis, 1 - forwards]
        points = [(*place, radius)]
        for motion in motions:
            axis, forwards = MOVES[motion]
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
    assert size is not None  # a thing that neither grows nor shrinks has one
    return RADII[size] * generator.uniform(0.92, 1.08)
