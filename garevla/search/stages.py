"""The first stage: which segments may be what a query asks for, by inner products of vectors."""

from __future__ import annotations

import warnings
from typing import NamedTuple, Protocol

import numpy as np
import torch

from garevla.search.format import segment_id
from garevla.search.store import Store

# Rows of a chunk: of 512 dimensions 64 MiB, of which no copy is made.
_ROWS_AT_ONCE = 1 << 15


class Candidates(NamedTuple):
    """Segments for a query, best first.

    Attributes:
        ids: (k,) int64.
        scores: (k,) float32 inner products.
    """

    ids: np.ndarray
    scores: np.ndarray


class FirstStage(Protocol):
    """What holds vectors of length 1 and finds those with the largest inner products.

    For collections beyond one machine: :class:`garevla.search.qdrant.QdrantStage`. Scores and order
    may be approximate; candidates are scored exactly afterwards.
    """

    def upsert(self, ids: np.ndarray, vectors: np.ndarray) -> None:
        """Store vectors (n, D) float32 under ids (n,) int64; an id that is there gets the new."""

    def delete(self, ids: np.ndarray) -> None:
        """Forget ids (n,); those that are not there are passed over."""

    def search(self, vector: np.ndarray, count: int) -> Candidates:
        """The ``count`` nearest (or all, if they are fewer) of a vector (D,)."""


class ExactScan:
    """The default first stage: the index's own vectors, all of them, from the memory map."""

    def __init__(self, store: Store) -> None:
        self._store = store
        records = [record for record in store.videos.values() if record.num_segments]
        records.sort(key=lambda record: record.first_segment)
        self._videos = np.array([record.id for record in records], np.int64)
        self._first = np.array([record.first_segment for record in records], np.int64)
        self._count = np.array([record.num_segments for record in records], np.int64)
        rows = len(store.vectors)
        # Rows of removed videos take no part.
        self._is_live = np.zeros(rows, bool)
        for first, count in zip(self._first.tolist(), self._count.tolist(), strict=True):
            self._is_live[first : first + count] = True
        self._is_checked = False

    def search(self, vector: np.ndarray, count: int) -> Candidates:
        """The ``count`` largest inner products of a vector (D,); of equal ones the lower id first.

        Raises:
            LibraryError: vectors are damaged.
        """
        self.check()
        query = torch.from_numpy(np.ascontiguousarray(vector, np.float32))
        best_scores = torch.empty(0)
        best_rows = torch.empty(0, dtype=torch.int64)
        vectors = self._store.vectors
        for first in range(0, len(vectors), _ROWS_AT_ONCE):
            chunk = vectors[first : first + _ROWS_AT_ONCE]
            scores = _readable(chunk) @ query
            live = torch.from_numpy(self._is_live[first : first + len(chunk)])
            scores[~live] = -torch.inf
            found = scores.topk(min(count, len(scores)))
            best_scores = torch.cat([best_scores, found.values])
            best_rows = torch.cat([best_rows, found.indices + first])
            if len(best_scores) > count:
                kept = best_scores.topk(count).indices
                best_scores, best_rows = best_scores[kept], best_rows[kept]
        is_live = best_scores > -torch.inf
        found_scores, rows = best_scores[is_live].numpy(), best_rows[is_live].numpy()
        order = np.lexsort((rows, -found_scores))
        return Candidates(self._ids(rows[order]), found_scores[order])

    def vectors_of(self, video_id: int) -> tuple[np.ndarray, np.ndarray]:
        """The ids (n,) of a video's segments and their vectors (n, D).

        Raises:
            LibraryError: vectors are damaged.
        """
        self.check()
        record = self._store.videos[video_id]
        rows = np.arange(record.first_segment, record.first_segment + record.num_segments)
        return self._ids(rows), np.asarray(self._store.vectors[rows])

    def all_ids(self) -> np.ndarray:
        """The ids of all segments."""
        return self._ids(np.flatnonzero(self._is_live))

    def check(self) -> None:
        """Compare the vectors with their checksums, once.

        Raises:
            LibraryError: some are damaged.
        """
        if not self._is_checked:
            self._store.check_vectors()
            self._is_checked = True

    def _ids(self, rows: np.ndarray) -> np.ndarray:
        at = np.searchsorted(self._first, rows, side="right") - 1
        return segment_id(self._videos[at], rows - self._first[at])


def _readable(array: np.ndarray) -> torch.Tensor:
    """A tensor over an array that must not be written to, of which torch warns."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return torch.from_numpy(array)
