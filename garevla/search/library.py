"""An index of videos, to search."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from garevla.data.frame_sampling import Sampling
from garevla.data.video import read_frames
from garevla.search.format import VideoRecord, split_segment_id
from garevla.search.graph import UsearchStage, load_graph
from garevla.search.model import ModelSource, SearchModel, load_search_model
from garevla.search.results import Result, Scored, merge
from garevla.search.sending import send
from garevla.search.stages import Candidates, ExactScan, FirstStage
from garevla.search.store import Store, database, read_state
from garevla.utils.devices import pick_device
from garevla.utils.locks import lock_folder
from garevla.utils.slices import slices_of

_SCORED_AT_ONCE = 512
# Best segments of which neighbours are joined.
_MERGED = 1000


class Library:
    """An index that ``garevla index`` made, as it was when it was opened.

    ::

        from garevla.search import Library

        for result in Library.open("library.garevla").search("a dog catches a ball"):
            print(result.path, result.start, result.end, result.confidence)

    Several threads may search at once. The model is loaded when it is first needed.
    """

    def __init__(
        self,
        store: Store,
        *,
        model: str | os.PathLike[str] | None = None,
        device: str = "auto",
        precision: str = "auto",
        first_stage: FirstStage | None = None,
    ) -> None:
        self._store = store
        self._scan = ExactScan(store)
        self._first_stage = first_stage
        self._device = pick_device(device)
        self._bf16 = precision == "bfloat16" or (
            precision == "auto" and self._device.type == "cuda"
        )
        self._moved_model = model
        self._model: SearchModel | None = None
        self._bank: np.ndarray | None = None
        # torch uses all cores by itself; two queries at once would only share them.
        self._lock = threading.Lock()

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        model: str | os.PathLike[str] | None = None,
        device: str = "auto",
        precision: str = "auto",
        first_stage: FirstStage | None = None,
    ) -> Library:
        """Open an index.

        Args:
            path: its folder.
            model: where the checkpoint is now, if it has moved.
            device: where the model computes: ``auto`` is CUDA where there is one.
            precision: of the text encoder, ``auto``, ``float32`` or ``bfloat16``.
            first_stage: where candidates come from, brought up to date by :meth:`send_to`; by
                default the index itself: its graph where it has one, else all of its vectors.

        Raises:
            FileNotFoundError: there is no index.
            LibraryError: it is damaged, or of another format.
            ValueError: no such device.
        """
        store = Store(path)
        if first_stage is None:
            first_stage = load_graph(store)
        return cls(store, model=model, device=device, precision=precision, first_stage=first_stage)

    @property
    def path(self) -> Path:
        """The folder of the index."""
        return self._store.folder

    @property
    def video_dir(self) -> Path:
        """The folder of the videos."""
        return Path(self._store.state["video_dir"])

    @property
    def sampling(self) -> Sampling:
        """Which frames the model sees of a segment."""
        return Sampling.from_settings(self._store.state["sampling"])

    @property
    def has_changed(self) -> bool:
        """Whether the index on disk is another by now: :meth:`reopened` shows that."""
        with database(self.path) as connection:
            # All of it: one that was made anew may have come to the same version.
            return bool(read_state(self.path, connection) != self._store.state)

    def reopened(self) -> Library:
        """The index as it is now, with the model that is loaded already, if that is the same."""
        is_own = isinstance(self._first_stage, UsearchStage)
        other = Library.open(
            self.path,
            model=self._moved_model,
            device=str(self._device),
            precision="bfloat16" if self._bf16 else "float32",
            first_stage=None if is_own else self._first_stage,
        )
        if other._store.state["model"] == self._store.state["model"]:
            other._model = self._model
        return other

    def search(
        self, text: str, top: int = 10, *, candidates: int = 200, exact: bool = False, skip: int = 0
    ) -> list[Result]:
        """Find the parts of videos that a text describes.

        Args:
            text: what to look for.
            top: the most results.
            candidates: segments of the first stage that are scored exactly.
            exact: score all segments exactly.
            skip: best results to leave out, for further pages.

        Returns:
            Results, best first.

        Raises:
            ValueError: an empty text, or numbers below 1 (``skip``: below 0).
            LibraryError: the index is damaged, or its model is not what it was.
        """
        if not text.strip():
            raise ValueError("text is empty")
        _check_counts(top, candidates, skip)
        with self._lock:
            features = self.model.encode_texts([text])
            vector = F.normalize(features, dim=-1)[0].cpu().numpy()
            ids = self._candidates(vector, max(candidates, top + skip), exact)
            (scores,) = self.exact_scores(features, ids)
            confidence = _share_below(self._bank_best())
        return self._results(ids, scores, top, skip, confidence)

    def like(
        self,
        video: str | os.PathLike[str],
        top: int = 10,
        *,
        candidates: int = 200,
        skip: int = 0,
    ) -> list[Result]:
        """Find the parts of videos that look like a video.

        The score is the cosine of the mean frames; there is no confidence.

        Args:
            video: a file, taken as one segment.
            top, candidates, skip: as for :meth:`search`.

        Raises:
            VideoError: the file cannot be read.
            ValueError, LibraryError: as :meth:`search`.
        """
        frames = read_frames(video, self.sampling)
        return self.like_frames(frames, top, candidates=candidates, skip=skip)

    def like_frames(
        self, frames: np.ndarray, top: int = 10, *, candidates: int = 200, skip: int = 0
    ) -> list[Result]:
        """Find the parts of videos that look like frames that were read already.

        Args:
            frames: uint8 (n, height, width, 3), RGB, sampled as :attr:`sampling` says.
            top, candidates, skip: as for :meth:`search`.

        Raises:
            ValueError, LibraryError: as :meth:`search`.
        """
        _check_counts(top, candidates, skip)
        with self._lock:
            vector = self.model.video_vector(frames)
            found = self._find(vector, max(candidates, top + skip))
        return self._results(found.ids, found.scores, top, skip, None)

    def send_to(self, stage: FirstStage, name: str) -> tuple[int, int]:
        """Bring a first stage elsewhere up to date with this index.

        What has been sent is noted in the index.

        Args:
            stage: where vectors go; it needs no more than :meth:`FirstStage.upsert` and ``delete``.
            name: by which the index knows it: another for each server or collection, and a new one
                after a collection has been emptied.

        Returns:
            How many segments were sent, and how many deleted.

        Raises:
            InUseError: the index is being written.
            LibraryError: it is damaged.
        """
        with lock_folder(self.path):
            return send(self._store, self._scan, stage, name)

    def thumbnail(self, segment_id: int) -> bytes:
        """The JPEG of a segment.

        Raises:
            KeyError: there is no such segment.
            LibraryError: it is damaged.
        """
        record, place = self._segment(segment_id)
        return self._store.thumbnail(record, place)

    def video(self, video_id: int) -> VideoRecord:
        """What the index knows of a video.

        Raises:
            KeyError: there is no such video.
        """
        return self._store.videos[video_id]

    def file(self, video_id: int) -> Path:
        """The absolute path of a video.

        Raises:
            KeyError: there is no such video.
        """
        return self.video_dir / self.video(video_id).name

    def status(self) -> dict[str, Any]:
        """What there is: values that JSON can hold."""
        records = self._store.videos.values()
        return {
            "path": str(self.path),
            "video_dir": str(self.video_dir),
            "videos": len(records),
            "segments": sum(record.num_segments for record in records),
            "seconds": sum(record.seconds for record in records),
            "bad": [
                {"path": record.name, "reason": record.reason} for record in self._store.failures
            ],
            "model": str(ModelSource(**self._store.state["model"])),
            "digest": self._store.state["model"]["digest"],
            "dim": self._store.dim,
            "cutting": self._store.state["cutting"],
            "sampling": self._store.state["sampling"],
            "bytes": sum(self._store.size().values()),
            "version": self._store.state["version"],
        }

    @property
    def model(self) -> SearchModel:
        """The model, loaded when it is first asked for.

        Raises:
            LibraryError: its weights are not those that the index was made with.
            FileNotFoundError, CheckpointError, PretrainedWeightsError: it cannot be loaded.
        """
        if self._model is None:
            source = ModelSource(**self._store.state["model"])
            if self._moved_model is not None:
                source = ModelSource(
                    ModelSource.of(str(self._moved_model), None).model,
                    source.pretrained,
                    source.digest,
                )
            sampling = Sampling.from_settings(self._store.state["sampling"])
            self._model = load_search_model(source, self._device, sampling, bf16=self._bf16)
        return self._model

    @property
    def first_stage(self) -> FirstStage | ExactScan:
        """Where candidates come from."""
        return self._first_stage or self._scan

    def segment_ids(self) -> np.ndarray:
        """The ids (n,) of all segments, int64."""
        return self._scan.all_ids()

    def exact_scores(self, text_features: Tensor, ids: np.ndarray) -> np.ndarray:
        """Scores (A, n) float32 of texts (A, D) with segments (n,).

        Raises:
            KeyError: there is no such segment.
            LibraryError: frame features are damaged.
        """
        most = self.model.sampling.max_frames
        scores = np.empty((len(text_features), len(ids)), np.float32)
        for batch in slices_of(len(ids), _SCORED_AT_ONCE):
            parts = [self._frames(int(each)) for each in ids[batch]]
            features = torch.zeros(len(parts), most, self._store.dim)
            mask = torch.zeros(len(parts), most, dtype=torch.bool)
            for row, (frames, valid) in enumerate(zip(features, mask, strict=True)):
                frames[: len(parts[row])] = torch.from_numpy(parts[row].astype(np.float32))
                valid[: len(parts[row])] = True
            scores[:, batch] = self.model.scores(text_features, features, mask).numpy()
        return scores

    def _candidates(self, vector: np.ndarray, count: int, exact: bool) -> np.ndarray:
        return self.segment_ids() if exact else self._find(vector, count).ids

    def _find(self, vector: np.ndarray, count: int) -> Candidates:
        found = self.first_stage.search(vector, count)
        # It may not have heard yet of videos that were removed.
        is_known = np.array([self._has(each) for each in found.ids.tolist()], bool)
        return Candidates(found.ids[is_known], found.scores[is_known])

    def _has(self, segment_id: int) -> bool:
        video_id, place = split_segment_id(segment_id)
        record = self._store.videos.get(video_id)
        return record is not None and 0 <= place < record.num_segments

    def _frames(self, segment_id: int) -> np.ndarray:
        record, place = self._segment(segment_id)
        return self._store.frames(record, place)

    def _segment(self, segment_id: int) -> tuple[VideoRecord, int]:
        if not self._has(segment_id):
            raise KeyError(f"no segment {segment_id} in {self.path}")
        video_id, place = split_segment_id(segment_id)
        return self._store.videos[video_id], place

    def _results(
        self,
        ids: np.ndarray,
        scores: np.ndarray,
        top: int,
        skip: int,
        confidence: Any,
    ) -> list[Result]:
        # As many whatever the page, so that pages go on where the one before has ended.
        best = np.argsort(-scores, kind="stable")[: max(_MERGED, top + skip)]
        scored = []
        for segment, score in zip(ids[best].tolist(), scores[best].tolist(), strict=True):
            record, place = self._segment(segment)
            times = self._store.segments(record)[place]
            start, end = float(times["start"]), float(times["end"])
            scored.append(Scored(segment, record.id, start, end, score))
        return [self._result(group, confidence) for group in merge(scored)[skip : skip + top]]

    def _result(self, group: Sequence[Scored], confidence: Any) -> Result:
        best = group[0]
        record = self._store.videos[best.video_id]
        ordered = sorted(group, key=lambda each: each.start)
        return Result(
            path=record.name,
            file=self.video_dir / record.name,
            start=ordered[0].start,
            end=max(each.end for each in group),
            score=best.score,
            confidence=None if confidence is None else confidence(best.score),
            video_id=record.id,
            segment_ids=tuple(each.id for each in ordered),
            best_segment=best.id,
            thumbnail=self.thumbnail(best.id),
        )

    def _bank_best(self) -> np.ndarray:
        """The best score (Q,) of each bank query in the whole index, in rising order."""
        if self._bank is None:
            best = np.full(len(self._store.state["bank"]), -np.inf, np.float32)
            for record in self._store.videos.values():
                best = np.maximum(best, self._store.bank_scores(record))
            self._bank = np.sort(best)
        return self._bank


def _share_below(sorted_scores: np.ndarray) -> Any:
    """The share of scores below one, never 1: of so many, another might have been better."""

    def share(score: float) -> float:
        return float(np.searchsorted(sorted_scores, score)) / (len(sorted_scores) + 1)

    return share


def _check_counts(top: int, candidates: int, skip: int) -> None:
    for name, value, least in (("top", top, 1), ("candidates", candidates, 1), ("skip", skip, 0)):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
