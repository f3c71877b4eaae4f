"""Bringing a first stage elsewhere up to date with an index."""

from __future__ import annotations

import numpy as np

from garevla.search.format import segment_id
from garevla.search.stages import ExactScan, FirstStage
from garevla.search.store import Store, database


def send(store: Store, scan: ExactScan, stage: FirstStage, name: str) -> tuple[int, int]:
    """Send what a stage lacks, and delete what it has too much; the caller holds the lock.

    A video is noted before the first of its vectors is sent and stays noted until the last is
    deleted, so that nothing is forgotten there should this be cut off.

    Args and returns as :meth:`garevla.search.Library.send_to`.
    """
    num_sent = num_deleted = 0
    with database(store.folder) as connection:
        rows = connection.execute(
            "SELECT video, segments, complete FROM sent WHERE stage = ?", [name]
        ).fetchall()
        noted = {video: (segments, complete) for video, segments, complete in rows}
        note = "INSERT OR REPLACE INTO sent VALUES (?, ?, ?, ?)"
        for video, record in store.videos.items():
            if noted.get(video, (0, 0))[1]:
                continue
            connection.execute(note, [name, video, record.num_segments, 0])
            ids, vectors = scan.vectors_of(video)
            stage.upsert(ids, vectors)
            connection.execute(note, [name, video, record.num_segments, 1])
            num_sent += len(ids)
        for video, (segments, _) in noted.items():
            if video in store.videos:
                continue
            stage.delete(segment_id(np.full(segments, video, np.int64), np.arange(segments)))
            connection.execute("DELETE FROM sent WHERE stage = ? AND video = ?", [name, video])
            num_deleted += segments
    return num_sent, num_deleted
