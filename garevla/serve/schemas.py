"""What the API takes and answers. FastAPI makes its OpenAPI description of these."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

MOST_TEXT = 1000
MOST_RESULTS = 100

Text = Annotated[str, Field(min_length=1, max_length=MOST_TEXT, description="What to look for.")]
Top = Annotated[int, Field(ge=1, le=MOST_RESULTS, description="The most results of this page.")]
Skip = Annotated[int, Field(ge=0, le=1 << 31, description="Results of the pages before.")]


@dataclass(frozen=True)
class TextQuery:
    """A search by text."""

    text: Text
    top: Top = 12
    skip: Skip = 0


@dataclass(frozen=True)
class Item:
    """A part of a video; start and end in seconds.

    ``confidence`` is from 0 to 1, the share of other captions that find nothing here as good; null
    where it is not known. ``thumbnail`` and ``video`` are paths on this server.
    """

    path: str
    start: float
    end: float
    score: float
    confidence: float | None
    video_id: int
    segment_id: int
    thumbnail: str
    video: str
    media_type: str


@dataclass(frozen=True)
class Found:
    """A page of results, best first.

    ``total`` counts those of all pages. ``nothing_like_it`` says that the confidence of the best is
    low. ``clip`` stands for the query clip when further pages are asked for.
    """

    total: int
    skip: int
    nothing_like_it: bool
    results: list[Item]
    clip: str | None = None


@dataclass(frozen=True)
class Status:
    """The index: numbers, model, how videos are cut; ``seconds`` of video, ``bytes`` on disk.

    ``most_clip_bytes``: of a query clip.
    """

    videos: int
    segments: int
    bad_files: int
    seconds: float
    bytes: int
    model: str
    digest: str
    dim: int
    cutting: dict[str, str | float | None]
    sampling: dict[str, str | int | float | None]
    video_dir: str
    path: str
    version: int
    most_clip_bytes: int


@dataclass(frozen=True)
class BadFile:
    """A file that could not be indexed."""

    path: str
    reason: str


@dataclass(frozen=True)
class BadFiles:
    """A page of them; ``total`` counts all."""

    total: int
    skip: int
    files: list[BadFile]


@dataclass(frozen=True)
class Problem:
    """Every answer but 2xx and 304."""

    error: str
