"""First stages elsewhere: they find what the scan finds, and follow an index that changes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from garevla.search import Library, LibraryError
from garevla.search.format import GRAPH
from garevla.search.stages import Candidates, ExactScan
from garevla.search.store import Store
from garevla.search.writer import Writer
from tests.search import made


class Memory:
    """A first stage in a dictionary."""

    def __init__(self) -> None:
        self.vectors: dict[int, np.ndarray] = {}

    def upsert(self, ids: np.ndarray, vectors: np.ndarray) -> None:
        self.vectors.update(zip(ids.tolist(), vectors.copy(), strict=True))

    def delete(self, ids: np.ndarray) -> None:
        for each in ids.tolist():
            self.vectors.pop(each, None)

    def search(self, vector: np.ndarray, count: int) -> Candidates:
        ids = np.array(list(self.vectors), np.int64)
        scores = np.stack(list(self.vectors.values())) @ vector
        order = np.argsort(-scores)[:count]
        return Candidates(ids[order], scores[order])


def change(folder: Path) -> None:
    with Writer(folder) as writer:
        writer.remove(2)
        made.add_video(writer, "new", np.random.default_rng(9), 4)
        writer.commit()


def check_finds_what_the_scan_finds(stage, folder: Path) -> None:
    scan = ExactScan(Store(folder))
    for seed in range(5):
        query = np.random.default_rng(seed).standard_normal(made.DIM).astype(np.float32)
        expected, found = scan.search(query, 8), stage.search(query, 8)
        np.testing.assert_array_equal(found.ids, expected.ids)
        np.testing.assert_allclose(found.scores, expected.scores, rtol=2e-3, atol=2e-3)


def check_follows(stage, folder: Path) -> None:
    made.make(folder, videos=12)
    library = Library.open(folder, device="cpu", first_stage=stage)
    total = library.status()["segments"]
    assert library.send_to(stage, "there") == (total, 0)
    assert library.send_to(stage, "there") == (0, 0)
    check_finds_what_the_scan_finds(stage, folder)
    before = library.search("anything")
    assert [r.best_segment for r in before] == [
        r.best_segment for r in Library.open(folder, device="cpu").search("anything")
    ]
    change(folder)
    # What the stage has not heard of yet is no error.
    assert len(library.reopened().search("anything", 20)) > 0
    assert library.reopened().send_to(stage, "there") == (4, 2)
    check_finds_what_the_scan_finds(stage, folder)


def test_a_stage_of_ones_own_follows(tmp_path):
    stage = Memory()
    check_follows(stage, tmp_path / "library")
    assert sorted(stage.vectors) == sorted(ExactScan(Store(tmp_path / "library")).all_ids())


def test_sending_that_is_cut_off_goes_on(tmp_path):
    class Failing(Memory):
        left = 5

        def upsert(self, ids: np.ndarray, vectors: np.ndarray) -> None:
            self.left -= 1
            if self.left == 0:
                raise ConnectionError("gone")
            super().upsert(ids, vectors)

    made.make(tmp_path / "library", videos=9)
    stage = Failing()
    library = Library.open(tmp_path / "library", device="cpu")
    with pytest.raises(ConnectionError):
        library.send_to(stage, "there")
    library.send_to(stage, "there")
    assert sorted(stage.vectors) == sorted(library._scan.all_ids())


def test_qdrant_follows(tmp_path):
    qdrant_client = pytest.importorskip("qdrant_client")
    from garevla.search.qdrant import QdrantStage

    client = qdrant_client.QdrantClient(":memory:")
    check_follows(QdrantStage(client, "segments", made.DIM), tmp_path / "library")
    with pytest.raises(ValueError, match="vectors of 96, not of 7"):
        QdrantStage(client, "segments", 7)


def test_usearch_follows(tmp_path):
    pytest.importorskip("usearch")
    from garevla.search.graph import UsearchStage

    stage = UsearchStage(made.DIM)
    check_follows(stage, tmp_path / "library")
    stage.save(tmp_path / "graph")
    check_finds_what_the_scan_finds(
        UsearchStage.load(tmp_path / "graph", made.DIM), tmp_path / "library"
    )


def test_the_graph_of_an_index(tmp_path):
    pytest.importorskip("usearch")
    from garevla.search.graph import UsearchStage, load_graph, update_graph

    folder = tmp_path / "library"
    made.make(folder, videos=12)
    update_graph(Store(folder))
    check_finds_what_the_scan_finds(load_graph(Store(folder)), folder)
    assert isinstance(Library.open(folder, device="cpu")._first_stage, UsearchStage)
    change(folder)
    # One of other segments is not used.
    assert load_graph(Store(folder)) is None
    update_graph(Store(folder))
    check_finds_what_the_scan_finds(load_graph(Store(folder)), folder)
    content = bytearray((folder / GRAPH).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / GRAPH).write_bytes(content)
    with pytest.raises(LibraryError, match="damaged"):
        load_graph(Store(folder))
    update_graph(Store(folder))
    check_finds_what_the_scan_finds(load_graph(Store(folder)), folder)


def test_an_empty_graph(tmp_path):
    pytest.importorskip("usearch")
    from garevla.search.graph import load_graph, update_graph

    made.make(tmp_path / "library", videos=0)
    update_graph(Store(tmp_path / "library"))
    stage = load_graph(Store(tmp_path / "library"))
    assert len(stage.search(np.ones(made.DIM, np.float32), 3).ids) == 0
