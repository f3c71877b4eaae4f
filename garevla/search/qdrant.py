"""Qdrant as the first stage: vectors on a server, or on several; scores stay here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from garevla.search.stages import Candidates
from garevla.utils.slices import slices_of

if TYPE_CHECKING:
    from qdrant_client import QdrantClient

_POINTS_AT_ONCE = 512


class QdrantStage:
    """A first stage (:class:`garevla.search.FirstStage`) in a collection of Qdrant.

    Args:
        client: a connected ``qdrant_client.QdrantClient``; its in-process mode does, too.
        collection: the name of the collection, made where there is none.
        dim: D of the vectors.

    Raises:
        ImportError: qdrant-client is not installed.
        ValueError: the collection has vectors of another dimension.
    """

    def __init__(self, client: QdrantClient, collection: str, dim: int) -> None:
        try:
            from qdrant_client import models
        except ImportError as error:
            raise ImportError(
                'this first stage needs qdrant-client: pip install "garevla[qdrant]"'
            ) from error
        self._client, self._collection, self._models = client, collection, models
        if not client.collection_exists(collection):
            # Of vectors of length 1 the inner product is the cosine.
            parameters = models.VectorParams(size=dim, distance=models.Distance.DOT)
            client.create_collection(collection, vectors_config=parameters)
        found: Any = client.get_collection(collection).config.params.vectors
        if found.size != dim:
            raise ValueError(f"collection {collection!r} has vectors of {found.size}, not of {dim}")

    def upsert(self, ids: np.ndarray, vectors: np.ndarray) -> None:
        for rows in slices_of(len(ids), _POINTS_AT_ONCE):
            points = self._models.Batch(ids=ids[rows].tolist(), vectors=vectors[rows].tolist())
            self._client.upsert(self._collection, points=points, wait=True)

    def delete(self, ids: np.ndarray) -> None:
        for rows in slices_of(len(ids), _POINTS_AT_ONCE):
            selector = self._models.PointIdsList(points=ids[rows].tolist())
            self._client.delete(self._collection, points_selector=selector, wait=True)

    def search(self, vector: np.ndarray, count: int) -> Candidates:
        found = self._client.query_points(
            self._collection, query=vector.tolist(), limit=count, with_payload=False
        ).points
        return Candidates(
            np.array([point.id for point in found], np.int64),
            np.array([point.score for point in found], np.float32),
        )
