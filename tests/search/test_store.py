from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from garevla.search.format import ARRAYS, DATABASE, LibraryError, VideoRecord, array_name
from garevla.search.stages import ExactScan
from garevla.search.store import Store
from garevla.search.writer import Writer, create
from tests.search import made


def contents(store: Store) -> dict[str, list[Any]]:
    """All that an index returns, by the videos' names; reads, and so checks, everything."""
    store.check_vectors()
    found = {}
    for record in store.videos.values():
        table = store.segments(record)
        rows = slice(record.first_segment, record.first_segment + record.num_segments)
        found[record.name] = [
            (record.size, record.modified_ns, record.digest, record.seconds),
            [(float(row["start"]), float(row["end"])) for row in table],
            [store.frames(record, place).tobytes() for place in range(len(table))],
            [store.thumbnail(record, place) for place in range(len(table))],
            store.vectors[rows].tobytes(),
            store.bank_scores(record).tobytes(),
        ]
    return found


def test_what_was_written_is_read(tmp_path):
    videos = made.make(tmp_path / "library")
    store = Store(tmp_path / "library")
    assert sorted(contents(store)) == sorted(videos)
    for record in store.videos.values():
        for place, segment in enumerate(videos[record.name]):
            frames = segment.frames.astype(np.float16)
            np.testing.assert_array_equal(store.frames(record, place), frames)
            assert store.thumbnail(record, place) == segment.thumbnail
            row = record.first_segment + place
            np.testing.assert_array_equal(store.vectors[row], segment.vector)


def test_ids_are_never_used_again(tmp_path):
    folder = tmp_path / "library"
    made.make(folder)
    generator = np.random.default_rng(1)
    with Writer(folder) as writer:
        last = max(writer.records)
        writer.remove(last)
        writer.commit()
    with Writer(folder) as writer:
        made.add_video(writer, "new", generator)
        writer.commit()
        assert max(writer.records) == last + 1


def test_what_is_not_committed_does_not_count(tmp_path):
    folder = tmp_path / "library"
    made.make(folder)
    before = contents(Store(folder))
    with Writer(folder) as writer:
        made.add_video(writer, "lost", np.random.default_rng(1))
        writer.remove(1)
    assert contents(Store(folder)) == before
    with Writer(folder) as writer:  # what the lost one has left is cut off
        made.add_video(writer, "kept", np.random.default_rng(2))
        writer.commit()
    after = contents(Store(folder))
    assert set(after) == {*before, "kept"}
    assert all(after[name] == before[name] for name in before)


def test_an_open_index_does_not_change(tmp_path):
    folder = tmp_path / "library"
    made.make(folder)
    store = Store(folder)
    before = contents(Store(folder))
    with Writer(folder) as writer:
        for video in (1, 2, 3):
            writer.remove(video)
        made.add_video(writer, "new", np.random.default_rng(1))
        writer.commit()
        assert writer.compact()
    assert contents(store) == before
    assert set(contents(Store(folder))) == {"3", "4", "new"}


def test_compaction_leaves_out_removed_videos_alone(tmp_path):
    folder = tmp_path / "library"
    made.make(folder, videos=8)
    before = contents(Store(folder))
    with Writer(folder) as writer:
        assert not writer.compact()
        for video in (1, 4, 6):
            writer.remove(video)
        writer.commit()
        assert writer.compact()
        made.add_video(writer, "new", np.random.default_rng(1))
        writer.commit()
    store = Store(folder)
    after = contents(store)
    assert all(after[name] == before[name] for name in ("1", "2", "4", "6", "7"))
    assert len(store.vectors) == sum(record.num_segments for record in store.videos.values())
    assert sorted(path.name for path in folder.glob("*.bin")) == sorted(
        array_name(array, 1) for array in ARRAYS
    )


def test_what_a_killed_compaction_leaves_is_no_part_of_the_next(tmp_path):
    folder = tmp_path / "library"
    made.make(folder, videos=8)
    before = contents(Store(folder))
    for array in ARRAYS:
        (folder / array_name(array, 1)).write_bytes(b"half a generation")
    with Writer(folder) as writer:
        for video in (1, 2, 3, 4):
            writer.remove(video)
        writer.commit()
        assert writer.compact()
    after = contents(Store(folder))
    assert after == {name: before[name] for name in ("4", "5", "6", "7")}


def test_the_scan_finds_the_nearest_of_what_is_there(tmp_path, monkeypatch):
    monkeypatch.setattr("garevla.search.stages._ROWS_AT_ONCE", 7)
    folder = tmp_path / "library"
    made.make(folder, videos=20)
    with Writer(folder) as writer:
        writer.remove(3)
        writer.remove(20)
        writer.commit()
    store = Store(folder)
    scan = ExactScan(store)
    ids = scan.all_ids()
    vectors = np.concatenate([scan.vectors_of(video)[1] for video in store.videos])
    assert len(set(ids.tolist())) == len(vectors) == 43
    query = np.random.default_rng(3).standard_normal(made.DIM).astype(np.float32)
    scores = vectors.astype(np.float64) @ query
    order = np.argsort(-scores)
    for count in (1, 10, 43, 100):
        found = scan.search(query, count)
        np.testing.assert_array_equal(found.ids, ids[order[:count]])
        np.testing.assert_allclose(found.scores, scores[order[:count]], rtol=1e-5, atol=1e-6)


def test_damaged_bytes_are_an_error_or_change_nothing(tmp_path):
    """A byte anywhere in any file."""
    made.make(tmp_path / "whole", videos=6)
    before = contents(Store(tmp_path / "whole"))
    generator = np.random.default_rng(0)
    folder = tmp_path / "damaged"
    messages = []
    files = sorted(path.name for path in (tmp_path / "whole").iterdir())
    for trial in range(240):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(tmp_path / "whole", folder)
        path = folder / files[trial % len(files)]
        content = bytearray(path.read_bytes())
        content[generator.integers(len(content))] ^= generator.integers(1, 256)
        path.write_bytes(content)
        try:
            after = contents(Store(folder))
        except LibraryError as error:
            messages.append(str(error))
        else:
            assert after == before, path.name
    # Most of the database is empty pages.
    assert len(messages) > 240 * 5 / 6 * 0.9
    assert all(str(folder) in message for message in messages)


@pytest.mark.parametrize("name", [DATABASE, *(array_name(array, 0) for array in ARRAYS)])
def test_a_file_that_is_cut_or_gone_is_an_error(tmp_path, name):
    folder = tmp_path / "library"
    made.make(folder)
    path = folder / name
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(LibraryError, match="damaged"):
        contents(Store(folder))
    path.unlink()
    error = FileNotFoundError if name == DATABASE else LibraryError
    with pytest.raises(error, match=r"library"):
        Store(folder)


@pytest.mark.parametrize(
    "change",
    [
        "DELETE FROM videos WHERE id = 2",
        "UPDATE videos SET seconds = 99 WHERE id = 2",
        "UPDATE videos SET path = 'other' WHERE id = 2",
        "UPDATE settings SET value = replace(value, '/videos', '/others') WHERE name = 'library'",
        "DELETE FROM settings",
        "DROP TABLE videos",
    ],
)
def test_a_changed_database_is_an_error(tmp_path, change):
    folder = tmp_path / "library"
    made.make(folder)
    with closing(sqlite3.connect(folder / DATABASE)) as connection, connection:
        connection.execute(change)
    with pytest.raises(LibraryError):
        Store(folder)


def test_another_format_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr("garevla.search.writer.FORMAT", "garevla library 9")
    (tmp_path / "library").mkdir()
    create(tmp_path / "library", made.settings())
    with pytest.raises(LibraryError, match=r"'garevla library 9'.*'garevla library 1'"):
        Store(tmp_path / "library")


def test_failures_are_kept_apart(tmp_path):
    folder = tmp_path / "library"
    made.make(folder)
    with Writer(folder) as writer:
        writer.add_failure(VideoRecord(0, b"bad.mp4", 1, 2, "", reason="no video"))
        writer.commit()
    store = Store(folder)
    assert len(store.videos) == 5
    assert [(record.name, record.reason) for record in store.failures] == [("bad.mp4", "no video")]


def test_names_that_are_no_text(tmp_path):
    folder = tmp_path / "library"
    made.make(folder)
    name = "\udcff odd\nname 🎬"
    with Writer(folder) as writer:
        made.add_video(writer, name, np.random.default_rng(1))
        writer.commit()
    assert Path(list(Store(folder).videos.values())[-1].name) == Path(name)
