"""Reading an index: nothing is returned that is not as it was written."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from garevla.search.format import (
    ARRAYS,
    BANK,
    COLUMNS,
    DATABASE,
    FORMAT,
    FRAMES,
    SEGMENT_DTYPE,
    SEGMENTS,
    THUMBNAILS,
    VECTORS,
    LibraryError,
    VideoRecord,
    array_name,
    checksum,
    total_checksum,
)

# Seconds to wait for a writer that is about to finish a transaction.
_BUSY_SECONDS = 30.0


@contextlib.contextmanager
def database(folder: Path) -> Iterator[sqlite3.Connection]:
    """The index's database, which must be there; errors of SQLite become named ones.

    Raises:
        FileNotFoundError: there is no index.
        LibraryError: SQLite cannot read it.
    """
    path = folder / DATABASE
    if not path.is_file():
        raise FileNotFoundError(f"no index in {folder}: make one with 'garevla index'")
    try:
        uri = f"{path.absolute().as_uri()}?mode=rw"
        connection = sqlite3.connect(uri, uri=True, timeout=_BUSY_SECONDS, isolation_level=None)
        try:
            yield connection
        finally:
            connection.close()
    # An integer out of range is an OverflowError, a damaged text a UnicodeDecodeError.
    except (sqlite3.Error, OverflowError, UnicodeError) as error:
        raise LibraryError(f"{path} is damaged or cannot be read: {error}") from error


def read_state(folder: Path, connection: sqlite3.Connection) -> dict[str, Any]:
    """The settings that all rows belong to.

    Raises:
        LibraryError: they are damaged, or of another format.
    """
    rows = dict(connection.execute("SELECT name, value FROM settings").fetchall())
    try:
        if checksum([rows["library"]]) != int(rows["checksum"]):
            raise ValueError("its settings are not as they were written")
        state: dict[str, Any] = json.loads(rows["library"])
    except (KeyError, ValueError, TypeError) as error:
        raise damaged(folder / DATABASE, str(error)) from error
    if state["format"] != FORMAT:
        raise LibraryError(
            f"{folder} is an index of format {state['format']!r}, this version reads {FORMAT!r}: "
            "index again"
        )
    return state


def read_videos(
    folder: Path, connection: sqlite3.Connection, state: dict[str, Any]
) -> list[VideoRecord]:
    """All rows of the table ``videos``, in the order of their ids.

    Raises:
        LibraryError: a row is damaged, missing or too many.
    """
    query = f"SELECT {', '.join(COLUMNS)}, checksum FROM videos ORDER BY id"
    records, checksums = [], []
    for *values, found in connection.execute(query):
        try:
            expected = checksum(values)
        except TypeError:
            expected = None
        if found != expected:
            raise damaged(folder / DATABASE, f"the row of video {values[0]}")
        records.append(VideoRecord(*values))
        checksums.append(found)
    if len(records) != state["videos"] or total_checksum(checksums) != state["total"]:
        raise damaged(folder / DATABASE, "rows of videos are missing, or there twice")
    return records


def damaged(path: Path, what: str) -> LibraryError:
    """The error for bytes that are not those written."""
    return LibraryError(
        f"{path} is damaged: {what}; 'garevla index … --verify' finds what is, and indexes it again"
    )


class Store:
    """An index as it was when it was opened; later changes by a writer do not show.

    Reading from several threads is safe.

    Args:
        folder: of the index.

    Attributes:
        folder: likewise.
        state: the settings, as in the database.
        videos: the indexed videos by their ids.
        failures: files that could not be indexed.

    Raises:
        FileNotFoundError: there is no index.
        LibraryError: it is damaged, or of another format.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        with database(self.folder) as connection:
            connection.execute("BEGIN")
            self.state = read_state(self.folder, connection)
            records = read_videos(self.folder, connection, self.state)
            # Within the transaction: afterwards a writer might put other arrays in their place.
            self._arrays = {array: self._map(array) for array in ARRAYS}
        self.videos = {record.id: record for record in records if record.reason is None}
        self.failures = [record for record in records if record.reason is not None]
        self._checked: set[tuple[str, int]] = set()

    @property
    def dim(self) -> int:
        """D of the features."""
        return int(self.state["dim"])

    @property
    def vectors(self) -> np.ndarray:
        """(rows, D) float32, of removed videos too; not checked, see :meth:`check_vectors`."""
        return self._arrays[VECTORS]

    def check_vectors(self) -> None:
        """Compare all vectors with their checksums, once.

        Raises:
            LibraryError: some are damaged.
        """
        for record in self.videos.values():
            rows = slice(record.first_segment, record.first_segment + record.num_segments)
            self._check(VECTORS, record, rows, record.vectors_crc)

    def segments(self, record: VideoRecord) -> np.ndarray:
        """The segments (n,) of a video, as ``SEGMENT_DTYPE``.

        Raises:
            LibraryError: they are damaged.
        """
        rows = slice(record.first_segment, record.first_segment + record.num_segments)
        return self._check(SEGMENTS, record, rows, record.segments_crc)

    def frames(self, record: VideoRecord, place: int) -> np.ndarray:
        """Frame features (n, D) of a segment, n from 1 to the model's most frames.

        Raises:
            LibraryError: they are damaged.
        """
        segment = self.segments(record)[place]
        first = int(segment["first_frame"])
        found = self._arrays[FRAMES][first : first + int(segment["num_frames"])]
        if zlib.crc32(np.ascontiguousarray(found).data) != segment["frames_crc"]:
            raise self._damaged(FRAMES, record)
        return found

    def thumbnail(self, record: VideoRecord, place: int) -> bytes:
        """A JPEG of a segment.

        Raises:
            LibraryError: it is damaged.
        """
        segment = self.segments(record)[place]
        first = int(segment["thumbnail"])
        found = self._arrays[THUMBNAILS][first : first + int(segment["thumbnail_bytes"])]
        content = found.tobytes()
        if zlib.crc32(content) != segment["thumbnail_crc"]:
            raise self._damaged(THUMBNAILS, record)
        return content

    def bank_scores(self, record: VideoRecord) -> np.ndarray:
        """The best score (Q,) of each bank query with a segment of a video, float32.

        Raises:
            LibraryError: they are damaged.
        """
        rows = slice(record.bank_row, record.bank_row + 1)
        return self._check(BANK, record, rows, record.bank_crc)[0]

    def damage(self, record: VideoRecord) -> LibraryError | None:
        """The first damage of all that belongs to a video, or None."""
        try:
            rows = slice(record.first_segment, record.first_segment + record.num_segments)
            self._check(VECTORS, record, rows, record.vectors_crc)
            self.bank_scores(record)
            for place in range(record.num_segments):
                self.frames(record, place)
                self.thumbnail(record, place)
        except LibraryError as error:
            return error
        return None

    def raw(self, array: str, first: int, count: int) -> np.ndarray:
        """Rows of an array as they are, not compared with a checksum."""
        return self._arrays[array][first : first + count]

    def size(self) -> dict[str, int]:
        """Bytes of each file of the index."""
        generation = int(self.state["generation"])
        names = [DATABASE, *(array_name(array, generation) for array in ARRAYS)]
        return {name: (self.folder / name).stat().st_size for name in names}

    def _check(self, array: str, record: VideoRecord, rows: slice, crc: int) -> np.ndarray:
        found = self._arrays[array][rows]
        if (array, record.id) not in self._checked:
            if zlib.crc32(np.ascontiguousarray(found).view(np.uint8).data) != crc:
                raise self._damaged(array, record)
            self._checked.add((array, record.id))
        return found

    def _damaged(self, array: str, record: VideoRecord) -> LibraryError:
        path = self.folder / array_name(array, int(self.state["generation"]))
        return damaged(path, f"what it holds of {record.name!r} is not as it was written")

    def _map(self, array: str) -> np.ndarray:
        path = self.folder / array_name(array, int(self.state["generation"]))
        dtype, width = array_layout(array, self.state)
        rows = int(self.state["rows"][array])
        shape = (rows, width) if width else (rows,)
        wanted = rows * dtype.itemsize * (width or 1)
        try:
            size = path.stat().st_size
        except OSError as error:
            raise damaged(path, f"it cannot be read ({error.strerror})") from error
        if size < wanted:
            raise damaged(path, f"it has {size:,} bytes and not {wanted:,}")
        if not wanted:
            return np.empty(shape, dtype)
        # A plain array over the map: slices of np.memmap cost more than some of them hold.
        return np.asarray(np.memmap(path, dtype, "r", shape=shape))


def array_layout(array: str, state: dict[str, Any]) -> tuple[np.dtype[Any], int]:
    """An array's dtype and the numbers of a row; 0 where a row is one element."""
    layouts: dict[str, tuple[np.dtype[Any], int]] = {
        SEGMENTS: (SEGMENT_DTYPE, 0),
        VECTORS: (np.dtype("<f4"), int(state["dim"])),
        FRAMES: (np.dtype(state["frames_dtype"]), int(state["dim"])),
        THUMBNAILS: (np.dtype("u1"), 0),
        BANK: (np.dtype("<f4"), len(state["bank"])),
    }
    return layouts[array]
