"""usearch as the first stage: an approximate graph in memory, for millions of segments."""

from __future__ import annotations

import os
import zlib
from pathlib import Path

import numpy as np

from garevla.search.format import GRAPH, LibraryError, split_segment_id
from garevla.search.stages import Candidates, ExactScan
from garevla.search.store import Store
from garevla.utils.files import atomic_file

_HEADER_BYTES = 4


class UsearchStage:
    """A first stage (:class:`garevla.search.FirstStage`) of one machine, approximate.

    Args:
        dim: D of the vectors.

    Raises:
        ImportError: usearch is not installed.
    """

    def __init__(self, dim: int) -> None:
        try:
            from usearch.index import Index
        except ImportError as error:
            raise ImportError(
                'this first stage needs usearch: pip install "garevla[usearch]"'
            ) from error
        self._index = Index(ndim=dim, metric="ip", dtype="f16")

    def __len__(self) -> int:
        return len(self._index)

    def ids(self) -> np.ndarray:
        """The ids (n,) of all vectors, int64, in rising order."""
        return np.sort(np.asarray(self._index.keys[:], np.int64))

    def upsert(self, ids: np.ndarray, vectors: np.ndarray) -> None:
        self.delete(ids)
        self._index.add(ids.astype(np.uint64), np.ascontiguousarray(vectors, np.float32))

    def delete(self, ids: np.ndarray) -> None:
        keys = ids.astype(np.uint64)
        if len(keys) and len(self._index):
            present = keys[np.asarray(self._index.contains(keys))]
            if len(present):
                self._index.remove(present)

    def search(self, vector: np.ndarray, count: int) -> Candidates:
        if not len(self._index):
            return Candidates(np.empty(0, np.int64), np.empty(0, np.float32))
        found = self._index.search(np.ascontiguousarray(vector, np.float32), count)
        return Candidates(
            np.asarray(found.keys, np.int64), 1 - np.asarray(found.distances, np.float32)
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the graph, with a checksum; a crash leaves what was there."""
        content = bytes(self._index.save())
        with atomic_file(path) as file:
            file.write(zlib.crc32(content).to_bytes(_HEADER_BYTES, "little"))
            file.write(content)

    @classmethod
    def load(cls, path: str | os.PathLike[str], dim: int) -> UsearchStage:
        """Read what :meth:`save` wrote.

        Raises:
            FileNotFoundError: no such file.
            LibraryError: it is damaged.
        """
        content = Path(path).read_bytes()
        header, graph = content[:_HEADER_BYTES], content[_HEADER_BYTES:]
        if zlib.crc32(graph) != int.from_bytes(header, "little"):
            raise LibraryError(f"{path} is damaged: remove it, and index again")
        stage = cls(dim)
        stage._index.load(graph)
        return stage


def update_graph(store: Store) -> None:
    """Bring the index's own graph up to date; the caller holds the lock."""
    scan = ExactScan(store)
    path = store.folder / GRAPH
    try:
        stage = UsearchStage.load(path, store.dim)
    except (FileNotFoundError, LibraryError):
        stage = UsearchStage(store.dim)
    wanted, present = scan.all_ids(), stage.ids()
    stage.delete(np.setdiff1d(present, wanted))
    absent = np.setdiff1d(wanted, present)
    for video in np.unique(split_segment_id(absent)[0]).tolist():
        stage.upsert(*scan.vectors_of(video))
    if len(absent) or len(present) != len(wanted) or not path.exists():
        stage.save(path)


def load_graph(store: Store) -> UsearchStage | None:
    """The index's graph; None where there is none, or it is not of these segments.

    Raises:
        LibraryError: it is damaged.
        ImportError: usearch is not installed.
    """
    path = store.folder / GRAPH
    if not path.exists():
        return None
    stage = UsearchStage.load(path, store.dim)
    wanted = np.sort(ExactScan(store).all_ids())
    return stage if np.array_equal(stage.ids(), wanted) else None
