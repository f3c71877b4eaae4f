"""Searches one after the other, of the index as it is now; what was found is kept for a while."""

from __future__ import annotations

import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

import anyio
import anyio.to_thread
import numpy as np

from garevla.search.library import Library
from garevla.search.results import LITTLE_CONFIDENCE, Result
from garevla.serve.media import media_type, readable
from garevla.serve.schemas import MOST_RESULTS, Item

# Searches that are kept for their further pages, and clips, of a megabyte or two each.
_KEPT_SEARCHES = 256
_KEPT_CLIPS = 32
# Seconds between looks whether the index has changed, and seconds that a search may wait.
_LOOK_EVERY = 1.0
_LONGEST_WAIT = 60.0

Value = TypeVar("Value")


class BusyError(RuntimeError):
    """More is asked than can be answered."""


class NoSuchClipError(KeyError):
    """A query clip that is not, or no longer, known."""


@dataclass(frozen=True)
class Hits:
    """What a search has found, all pages of it."""

    items: tuple[Item, ...]
    nothing_like_it: bool


class _Kept(Generic[Value]):
    """The values used last, a fixed number of them."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._values: OrderedDict[str, Value] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: str) -> Value | None:
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
            return self._values.get(key)

    def put(self, key: str, value: Value) -> None:
        with self._lock:
            self._values[key] = value
            self._values.move_to_end(key)
            while len(self._values) > self._most:
                self._values.popitem(last=False)


class _Opened(NamedTuple):
    """An index as it was when it was opened, and what was found in it."""

    library: Library
    found: _Kept[Hits]

    @classmethod
    def of(cls, library: Library) -> _Opened:
        return cls(library, _Kept(_KEPT_SEARCHES))


class Searches:
    """What the API asks of an index.

    Args:
        library: the index, opened.
        candidates: segments of the first stage that are scored exactly.
        waiting: searches that may wait for their turn.
    """

    def __init__(self, library: Library, candidates: int, waiting: int) -> None:
        self._opened = _Opened.of(library)
        self._candidates = candidates
        self._most_waiting = waiting
        self._waiting = 0
        # torch uses all cores for one search.
        self._turn = anyio.Lock()
        self._opening = threading.Lock()
        self._looked = time.monotonic()
        self._clips: _Kept[np.ndarray] = _Kept(_KEPT_CLIPS)

    def library(self) -> Library:
        """The index as it is on disk now, give or take a second; may take the time to open it.

        Raises:
            FileNotFoundError, LibraryError: it is not there any more, or is damaged.
        """
        return self._now().library

    async def of_text(self, text: str) -> Hits:
        """What a text finds.

        Raises:
            BusyError: too many wait, or too long.
            ValueError, LibraryError: as :meth:`garevla.search.Library.search`.
        """

        def search(library: Library) -> list[Result]:
            return library.search(text, MOST_RESULTS, candidates=self._candidates)

        return await self._hits(f"text {text}", search)

    async def of_clip(self, clip: str) -> Hits:
        """What is like a clip that was given to :meth:`keep_clip`.

        Raises:
            NoSuchClipError: that was too long ago, or never.
            BusyError, LibraryError: as :meth:`of_text`.
        """
        frames = self._clips.get(clip)
        if frames is None:
            raise NoSuchClipError(clip)

        def search(library: Library) -> list[Result]:
            return library.like_frames(frames, MOST_RESULTS, candidates=self._candidates)

        return await self._hits(f"clip {clip}", search)

    def keep_clip(self, frames: np.ndarray) -> str:
        """Keep the frames of a query clip; returns a name for it that cannot be guessed."""
        name = secrets.token_urlsafe(16)
        self._clips.put(name, frames)
        return name

    def _now(self) -> _Opened:
        with self._opening:
            if time.monotonic() - self._looked >= _LOOK_EVERY:
                if self._opened.library.has_changed:
                    self._opened = _Opened.of(self._opened.library.reopened())
                self._looked = time.monotonic()
            return self._opened

    async def _hits(self, query: str, search: Callable[[Library], list[Result]]) -> Hits:
        if self._waiting >= self._most_waiting:
            raise BusyError("too many searches at once: try again in a few seconds")
        self._waiting += 1
        try:
            library, found = await anyio.to_thread.run_sync(self._now)
            if (known := found.get(query)) is not None:
                return known
            await self._take_turn()
            try:
                # The one before may have been the same.
                if (hits := found.get(query)) is None:
                    hits = await anyio.to_thread.run_sync(_hits_of, library, search)
                    found.put(query, hits)
                return hits
            finally:
                self._turn.release()
        finally:
            self._waiting -= 1

    async def _take_turn(self) -> None:
        try:
            with anyio.fail_after(_LONGEST_WAIT):
                await self._turn.acquire()
        except TimeoutError as error:
            raise BusyError("searches take too long now: try again later") from error


def _hits_of(library: Library, search: Callable[[Library], list[Result]]) -> Hits:
    results = search(library)
    best = results[0].confidence if results else 0.0
    return Hits(
        tuple(_item(result) for result in results),
        nothing_like_it=best is not None and best < LITTLE_CONFIDENCE,
    )


def _item(result: Result) -> Item:
    return Item(
        path=readable(result.path),
        start=result.start,
        end=result.end,
        score=result.score,
        confidence=result.confidence,
        video_id=result.video_id,
        segment_id=result.best_segment,
        thumbnail=f"/api/thumbnails/{result.best_segment}",
        video=f"/api/videos/{result.video_id}",
        media_type=media_type(result.file),
    )
