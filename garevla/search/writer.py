"""Writing an index: arrays grow at their ends, and a transaction makes what was appended count."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sqlite3
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from garevla.search.format import (
    ARRAYS,
    BANK,
    COLUMNS,
    DATABASE,
    FORMAT,
    FRAMES,
    SCHEMA,
    SEGMENT_DTYPE,
    SEGMENTS,
    THUMBNAILS,
    VECTORS,
    LibraryError,
    VideoRecord,
    array_name,
    checksum,
)
from garevla.search.store import Store, array_layout, database, read_state, read_videos
from garevla.utils.files import sync_folder

# Rows of removed videos are left where they are until they are this share of all.
_DEAD_SHARE = 0.25
_COPIED_AT_ONCE = 1 << 24
_UNFINISHED_DATABASE = f"{DATABASE}.new"


class SegmentData(NamedTuple):
    """What is kept of a segment: seconds, frame features (n, D), vector (D,), a JPEG."""

    start: float
    end: float
    frames: np.ndarray
    vector: np.ndarray
    thumbnail: bytes


def create(folder: Path, settings: dict[str, Any]) -> None:
    """Begin an index without videos.

    Args:
        folder: which exists, and in which nothing but the remains of a killed writer may be.
        settings: ``dim``, ``frames_dtype``, ``bank`` (texts), and whatever else is to be known.
    """
    state = {
        "format": FORMAT,
        "generation": 0,
        "version": 0,
        "next_id": 1,
        "videos": 0,
        "total": 0,
        "rows": dict.fromkeys(ARRAYS, 0),
        **settings,
    }
    for array in ARRAYS:
        (folder / array_name(array, 0)).write_bytes(b"")
    # A database is there whole or not at all.
    unfinished = folder / _UNFINISHED_DATABASE
    unfinished.unlink(missing_ok=True)
    with contextlib.closing(sqlite3.connect(unfinished)) as connection:
        connection.executescript(SCHEMA)
        _write_state(connection, state)
        connection.commit()
    os.replace(unfinished, folder / DATABASE)
    sync_folder(folder)


class Writer:
    """Changes an index; what is not committed is undone by the next writer.

    One at a time: the caller holds the folder's lock.

    Attributes:
        state: the settings, as they are after the next commit.
        records: the rows by id, likewise.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._stack = contextlib.ExitStack()
        self._files: dict[str, BinaryIO] = {}
        try:
            self._connection = self._stack.enter_context(database(folder))
            self.state = read_state(folder, self._connection)
            self.records = {
                record.id: record for record in read_videos(folder, self._connection, self.state)
            }
            self._written, self._is_changed = dict(self.records), False
            self._open_arrays()
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._close_arrays()
        self._stack.__exit__(kind, error, traceback)

    def add(
        self, video: VideoRecord, segments: Sequence[SegmentData], bank_scores: np.ndarray
    ) -> None:
        """Add an indexed video.

        Args:
            video: path, size, time, digest and seconds; the rest is filled in.
            segments: one or more, in order.
            bank_scores: (Q,), as in :meth:`garevla.search.store.Store.bank_scores`.
        """
        rows = self.state["rows"]
        first = {array: int(rows[array]) for array in ARRAYS}
        table = np.zeros(len(segments), SEGMENT_DTYPE)
        frames_dtype, _ = array_layout(FRAMES, self.state)
        for row, segment in zip(table, segments, strict=True):
            frames = np.ascontiguousarray(segment.frames, frames_dtype)
            row["start"], row["end"] = segment.start, segment.end
            row["first_frame"], row["num_frames"] = rows[FRAMES], len(frames)
            row["frames_crc"] = self._append(FRAMES, frames)
            row["thumbnail"], row["thumbnail_bytes"] = rows[THUMBNAILS], len(segment.thumbnail)
            thumbnail = np.frombuffer(segment.thumbnail, np.uint8)
            row["thumbnail_crc"] = self._append(THUMBNAILS, thumbnail)
        vectors = np.stack([segment.vector for segment in segments]).astype("<f4")
        self._add_record(
            dataclasses.replace(
                video,
                first_segment=first[SEGMENTS],
                num_segments=len(segments),
                first_frame=first[FRAMES],
                num_frames=rows[FRAMES] - first[FRAMES],
                first_thumbnail=first[THUMBNAILS],
                thumbnail_bytes=rows[THUMBNAILS] - first[THUMBNAILS],
                bank_row=first[BANK],
                segments_crc=self._append(SEGMENTS, table),
                vectors_crc=self._append(VECTORS, vectors),
                bank_crc=self._append(BANK, bank_scores.astype("<f4")[None]),
                reason=None,
            )
        )

    def add_failure(self, video: VideoRecord) -> None:
        """Note a file that cannot be indexed, with its reason."""
        self._add_record(video)

    def remove(self, video_id: int) -> None:
        """Forget a video or a failure."""
        del self.records[video_id]

    def replace(self, record: VideoRecord) -> None:
        """Give a video another path or time; its content is the same."""
        self.records[record.id] = record

    def set(self, name: str, value: Any) -> None:
        """Change one of the settings."""
        self._is_changed |= self.state[name] != value
        self.state[name] = value

    def commit(self) -> None:
        """Make all changes count, together."""
        changed = [
            record for key, record in self.records.items() if self._written.get(key) != record
        ]
        gone = [key for key in self._written if key not in self.records]
        if not (changed or gone or self._is_changed):
            return
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
        with self._transaction():
            self._write_records(changed, gone)

    def compact(self) -> bool:
        """Leave out what removed videos have left, if that is much; return whether it was."""
        live = sum(record.num_segments for record in self.records.values())
        dead = int(self.state["rows"][SEGMENTS]) - live
        if dead <= _DEAD_SHARE * self.state["rows"][SEGMENTS]:
            return False
        self.commit()
        store = Store(self.folder)
        old = int(self.state["generation"])
        self._close_arrays()
        self.state = {
            **self.state,
            "generation": old + 1,
            "rows": dict.fromkeys(ARRAYS, 0),
        }
        self._open_arrays()
        for record in list(store.videos.values()):
            self._copy(store, record)
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
        with self._transaction():
            self._write_records(list(self.records.values()), [])
        self._remove_generations()
        return True

    def _copy(self, store: Store, record: VideoRecord) -> None:
        """Append a video's rows to the arrays of the new generation."""
        rows = self.state["rows"]
        first = {array: int(rows[array]) for array in ARRAYS}
        table = store.segments(record).copy()
        table["first_frame"] += first[FRAMES] - record.first_frame
        table["thumbnail"] += first[THUMBNAILS] - record.first_thumbnail
        parts = {
            VECTORS: (record.first_segment, record.num_segments),
            FRAMES: (record.first_frame, record.num_frames),
            THUMBNAILS: (record.first_thumbnail, record.thumbnail_bytes),
            BANK: (record.bank_row, 1),
        }
        for array, (begin, count) in parts.items():
            self._append(array, store.raw(array, begin, count))
        self.records[record.id] = dataclasses.replace(
            record,
            first_segment=first[SEGMENTS],
            first_frame=first[FRAMES],
            first_thumbnail=first[THUMBNAILS],
            bank_row=first[BANK],
            segments_crc=self._append(SEGMENTS, table),
        )

    def _add_record(self, record: VideoRecord) -> None:
        video_id = int(self.state["next_id"])
        self.state["next_id"] = video_id + 1
        self.records[video_id] = dataclasses.replace(record, id=video_id)

    def _append(self, array: str, rows: np.ndarray) -> int:
        """Append rows; return the checksum of their bytes."""
        content = np.ascontiguousarray(rows).view(np.uint8).reshape(-1).data
        self._files[array].write(content)
        self.state["rows"][array] += len(rows)
        return zlib.crc32(content)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._connection.execute("COMMIT")
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise
        self._written, self._is_changed = dict(self.records), False

    def _write_records(self, changed: Sequence[VideoRecord], gone: Sequence[int]) -> None:
        run = self._connection.executemany
        run("DELETE FROM videos WHERE id = ?", [(key,) for key in gone])
        places = ", ".join("?" * (len(COLUMNS) + 1))
        run(
            f"INSERT OR REPLACE INTO videos ({', '.join(COLUMNS)}, checksum) VALUES ({places})",
            [(*record.values(), checksum(record.values())) for record in changed],
        )
        total = self._connection.execute("SELECT checksum FROM videos").fetchall()
        self.state["videos"] = len(self.records)
        self.state["total"] = sum(value for (value,) in total) % (1 << 63)
        self.state["version"] += 1
        _write_state(self._connection, self.state)

    def _open_arrays(self) -> None:
        for array in ARRAYS:
            path = self.folder / array_name(array, int(self.state["generation"]))
            dtype, width = array_layout(array, self.state)
            length = int(self.state["rows"][array]) * dtype.itemsize * (width or 1)
            size = path.stat().st_size if path.exists() else 0
            if size < length:
                raise LibraryError(
                    f"{path} is damaged: it has {size:,} bytes and not {length:,}; remove "
                    f"{self.folder} and index again"
                )
            file = path.open("ab")
            # What a killed writer has appended does not count.
            file.truncate(length)
            self._files[array] = file

    def _close_arrays(self) -> None:
        for file in self._files.values():
            file.close()
        self._files = {}

    def _remove_generations(self) -> None:
        """Remove arrays of other generations; readers that have them mapped keep them."""
        names = {array_name(array, int(self.state["generation"])) for array in ARRAYS}
        for path in self.folder.glob("*-*.bin"):
            if path.name not in names:
                path.unlink()


def _write_state(connection: sqlite3.Connection, state: dict[str, Any]) -> None:
    value = json.dumps(state)
    connection.executemany(
        "INSERT OR REPLACE INTO settings VALUES (?, ?)",
        [("library", value), ("checksum", str(checksum([value])))],
    )
