"""What an index consists of on disk: docs/search.md describes it for readers of other programs."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import numpy as np

FORMAT = "garevla library 1"
DATABASE = "library.sqlite"
# Of the optional first stage.
GRAPH = "graph.usearch"

# The arrays of a generation: <name>-<generation>.bin, rows appended one after the other.
SEGMENTS, VECTORS, FRAMES, THUMBNAILS, BANK = ARRAYS = (
    "segments",
    "vectors",
    "frames",
    "thumbnails",
    "bank",
)

# A segment of a video; where its frame features and its thumbnail are, and their checksums.
SEGMENT_DTYPE = np.dtype(
    [
        ("start", "<f8"),
        ("end", "<f8"),
        ("first_frame", "<i8"),
        ("num_frames", "<i4"),
        ("frames_crc", "<u4"),
        ("thumbnail", "<i8"),
        ("thumbnail_bytes", "<i4"),
        ("thumbnail_crc", "<u4"),
    ]
)

# A segment's id is its video's id and its place in the video, which fit 64 bits together.
_PLACE_BITS = 20
MOST_SEGMENTS = 1 << _PLACE_BITS


class LibraryError(RuntimeError):
    """An index that cannot be read, is damaged, or was made otherwise than asked for."""


Ids = TypeVar("Ids", int, "np.ndarray[Any, Any]")


def segment_id(video_id: Ids, place: Ids) -> Ids:
    """The id of a video's segment; never used again, also after the video has changed."""
    return video_id << _PLACE_BITS | place


def split_segment_id(segment: Ids) -> tuple[Ids, Ids]:
    """The video's id, and the place of the segment in it."""
    return segment >> _PLACE_BITS, segment & MOST_SEGMENTS - 1


def array_name(array: str, generation: int) -> str:
    """The file of an array."""
    return f"{array}-{generation}.bin"


@dataclass(frozen=True)
class VideoRecord:
    """A file of the indexed folder: its segments, or why it has none.

    Attributes:
        id: never used again.
        path: relative to the folder, ``/`` between its parts, with the bytes of the system's name.
        size, modified_ns, digest: bytes, time of change and SHA-256 of the content (empty where it
            could not be read).
        seconds: length.
        first_segment, num_segments: its rows of ``segments`` and ``vectors``.
        first_frame, num_frames: its rows of ``frames``.
        first_thumbnail, thumbnail_bytes: its bytes of ``thumbnails``.
        bank_row: its row of ``bank``.
        segments_crc, vectors_crc, bank_crc: CRC-32 of its bytes in these files.
        reason: why it cannot be indexed; None where it is.
    """

    id: int
    path: bytes
    size: int
    modified_ns: int
    digest: str
    seconds: float = 0.0
    first_segment: int = 0
    num_segments: int = 0
    first_frame: int = 0
    num_frames: int = 0
    first_thumbnail: int = 0
    thumbnail_bytes: int = 0
    bank_row: int = 0
    segments_crc: int = 0
    vectors_crc: int = 0
    bank_crc: int = 0
    reason: str | None = None

    @property
    def name(self) -> str:
        """The path as a string, as ``os.fsdecode`` gives it."""
        return os.fsdecode(self.path)

    def values(self) -> tuple[Any, ...]:
        """The values of the columns."""
        return tuple(getattr(self, name) for name in COLUMNS)


COLUMNS = tuple(each.name for each in fields(VideoRecord))

_TYPES = {"bytes": "BLOB NOT NULL", "int": "INTEGER NOT NULL", "float": "REAL NOT NULL"}
_TYPES |= {"str": "TEXT NOT NULL", "str | None": "TEXT"}

SCHEMA = f"""
CREATE TABLE settings (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE videos (
    {", ".join(f"{each.name} {_TYPES[str(each.type)]}" for each in fields(VideoRecord))},
    checksum INTEGER NOT NULL,
    PRIMARY KEY (id)
);
CREATE TABLE sent (stage TEXT NOT NULL, video INTEGER NOT NULL, segments INTEGER NOT NULL,
    complete INTEGER NOT NULL, PRIMARY KEY (stage, video));
"""


def checksum(values: Sequence[Any]) -> int:
    """Of a row's values or of the settings: 63 bits."""
    readable = [os.fsdecode(value) if isinstance(value, bytes) else value for value in values]
    digest = hashlib.blake2b(json.dumps(readable).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def total_checksum(checksums: Sequence[int]) -> int:
    """Of all rows together, whatever their order: a row that is gone or there twice changes it."""
    return sum(checksums) % (1 << 63)
