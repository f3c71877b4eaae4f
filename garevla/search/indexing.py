"""Making an index of a folder of videos, and bringing it up to date."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from garevla.data._optional import require
from garevla.data.decoding_processes import ask_processes
from garevla.data.frame_sampling import DEFAULT_SAMPLING, Sampling
from garevla.data.good_files import signature
from garevla.data.video_files import video_files
from garevla.search.bank import read_bank
from garevla.search.cutting import Cutting
from garevla.search.decoding import content_digest
from garevla.search.format import (
    ARRAYS,
    DATABASE,
    GRAPH,
    LibraryError,
    VideoRecord,
    array_name,
)
from garevla.search.model import ModelSource, SearchModel, load_search_model, segment_vectors
from garevla.search.settings import IndexConfig
from garevla.search.store import Store, database, read_state
from garevla.search.writer import SegmentData, Writer, create
from garevla.training.config import ConfigError
from garevla.utils.devices import pick_device
from garevla.utils.locks import lock_folder
from garevla.utils.slices import slices_of

_DEFAULT_MODEL = ModelSource("ViT-B-32-quickgelu", "openai")
_WORK = "work"
# A killed run loses at most so much.
_SECONDS_BETWEEN_COMMITS = 5.0


@dataclass(frozen=True)
class IndexReport:
    """What a run has changed, and what there is now.

    Attributes:
        added, changed, removed, moved, unchanged: files.
        damaged: videos that were indexed again because their part of the index was damaged.
        bad: files that cannot be indexed, with their reasons; found now or before.
        num_videos, num_segments: in the index.
        seconds: length of the videos that were decoded.
    """

    added: int
    changed: int
    removed: int
    moved: int
    unchanged: int
    damaged: int
    bad: tuple[tuple[Path, str], ...]
    num_videos: int
    num_segments: int
    seconds: float

    def lines(self) -> list[str]:
        """The numbers in words."""
        counts = ("added", "changed", "removed", "moved", "damaged", "unchanged")
        changes = [f"{count} {name}" for name in counts if (count := getattr(self, name))]
        return [
            f"Files: {', '.join(changes) or 'none'}; {len(self.bad)} cannot be indexed",
            f"The index has {self.num_segments} segments of {self.num_videos} videos",
        ]


def index_videos(config: IndexConfig, *, progress: bool = True) -> IndexReport:
    """Index a folder, or bring its index up to date.

    A killed run leaves an index that holds all videos of before and those that were done; the next
    run goes on. Files are told by size and time of change, and where these differ by their content.

    Raises:
        FileNotFoundError: there is no such folder, or no such checkpoint.
        InUseError: another process writes this index.
        LibraryError: the index is damaged, or was made with other settings or another model.
        ConfigError, ValueError, PretrainedWeightsError, CheckpointError: as
            :func:`garevla.search.model.load_search_model`; settings that make no sense.
    """
    video_dir = Path(os.path.abspath(config.video_dir))
    if not video_dir.is_dir():
        raise FileNotFoundError(f"video folder {video_dir} does not exist or is not a folder")
    _check_output(config.output, video_dir)
    with lock_folder(config.output):
        model, cutting = _prepare(config, video_dir)
        with Writer(config.output) as writer:
            run = _Run(config, video_dir, model, cutting, writer)
            report = run.update(progress)
        if config.graph or (config.output / GRAPH).exists():
            from garevla.search.graph import update_graph

            update_graph(Store(config.output))
        return report


def _check_output(output: Path, video_dir: Path) -> None:
    if output.exists() and not output.is_dir():
        raise NotADirectoryError(f"output must be a folder, or not exist: {output}")
    known = {".lock", DATABASE, f"{DATABASE}.new", _WORK, *(array_name(a, 0) for a in ARRAYS)}
    is_new = not (output / DATABASE).exists()
    if is_new and output.is_dir() and (others := {p.name for p in output.iterdir()} - known):
        raise LibraryError(f"output {output} is no index, and not empty: it has {min(others)}")
    if Path(os.path.abspath(output)) == video_dir:
        raise ConfigError(f"output must be another folder than video_dir: {output}")


def _prepare(config: IndexConfig, video_dir: Path) -> tuple[SearchModel, Cutting]:
    """The model and the cutting of an index, which is made where there is none."""
    device = pick_device(config.device)
    state: dict[str, Any] | None = None
    if (config.output / DATABASE).exists():
        with database(config.output) as connection:
            state = read_state(config.output, connection)
        _check_same(config, video_dir, state)
    source = _DEFAULT_MODEL
    sampling = DEFAULT_SAMPLING
    cutting = config.cutting()
    if state is not None:
        source = _moved(config, ModelSource(**state["model"]))
        sampling = Sampling.from_settings(state["sampling"])
        cutting = Cutting(**state["cutting"])
    elif config.model is not None:
        source = ModelSource.of(config.model, config.pretrained)
    if state is None and not source.is_checkpoint:
        sampling = Sampling(
            config.max_frames or sampling.max_frames,
            sampling.mode,
            config.frames_per_second or sampling.frames_per_second,
        )
    if cutting.segments == "shots":
        require("scenedetect")
    if config.graph:
        require("usearch")
    bank = state["bank"] if state is not None else read_bank(config.bank)
    model = load_search_model(source, device, sampling, bf16=config.autocasts(device.type))
    if state is None:
        create(
            config.output,
            {
                "dim": model.dim,
                "frames_dtype": {"float32": "<f4"}.get(config.frames_dtype or "", "<f2"),
                "bank": bank,
                "video_dir": str(video_dir),
                "model": model.source.as_dict(),
                "sampling": model.sampling.as_settings(),
                "cutting": dataclasses.asdict(cutting),
            },
        )
    return model, cutting


def _check_same(config: IndexConfig, video_dir: Path, state: dict[str, Any]) -> None:
    """Refuse settings that differ from those that an index was made with."""
    source, sampling = ModelSource(**state["model"]), state["sampling"]
    cutting, bank = Cutting(**state["cutting"]), state["bank"]
    given: dict[str, tuple[Any, Any]] = {
        "max_frames": (config.max_frames, sampling["max_frames"]),
        "frames_per_second": (config.frames_per_second, sampling["frames_per_second"]),
        "segments": (config.cutting(cutting), cutting),
        "frames_dtype": (
            config.frames_dtype,
            {"<f2": "float16"}.get(state["frames_dtype"], "float32"),
        ),
        "bank": (None if config.bank is None else read_bank(config.bank), bank),
    }
    if config.model is not None:
        wanted = ModelSource.of(config.model, config.pretrained)
        given["model"] = (str(wanted), str(_moved(config, source)))
    for name, (new, old) in given.items():
        if new is not None and new != old:
            raise LibraryError(
                f"the index {config.output} was made with {name} {old}, not {new}: leave the "
                "setting out, or take another output"
            )
    if str(video_dir) != state["video_dir"] and not _same_folder(video_dir, state["video_dir"]):
        raise LibraryError(
            f"the index {config.output} is of {state['video_dir']}, not of {video_dir}: take "
            "another output"
        )


def _moved(config: IndexConfig, source: ModelSource) -> ModelSource:
    """An index's model, at the place that is given for its checkpoint: its weights will tell."""
    if config.model is None:
        return source
    given = ModelSource.of(config.model, config.pretrained)
    is_other = not (given.is_checkpoint and source.is_checkpoint)
    return source if is_other else dataclasses.replace(source, model=given.model)


def _same_folder(video_dir: Path, other: str) -> bool:
    """Whether two paths are one folder; a folder that has been moved takes its index along."""
    with contextlib.suppress(OSError):
        return os.path.samefile(video_dir, other)
    return True


class _Run:
    """One run over a folder."""

    def __init__(
        self,
        config: IndexConfig,
        video_dir: Path,
        model: SearchModel,
        cutting: Cutting,
        writer: Writer,
    ) -> None:
        self.config, self.video_dir, self.model = config, video_dir, model
        self.cutting, self.writer = cutting, writer
        self.work = config.output / _WORK
        self.bank = model.encode_texts(writer.state["bank"])
        self.counts = dict.fromkeys(
            ("added", "changed", "removed", "moved", "unchanged", "damaged"), 0
        )
        self.seconds = 0.0
        self.committed = time.monotonic()

    def update(self, progress: bool) -> IndexReport:
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir()
        try:
            if self.config.verify:
                self._drop_damaged()
            self.writer.set("video_dir", str(self.video_dir))
            self.writer.set("model", self.model.source.as_dict())
            pending = self._compare()
            with _bar(len(pending), progress) as advance:
                for name, answer in self._decoded(pending):
                    self._take(name, answer)
                    self._commit_now_and_then()
                    advance()
            self.writer.commit()
            self.writer.compact()
        finally:
            shutil.rmtree(self.work, ignore_errors=True)
        records = list(self.writer.records.values())
        indexed = [record for record in records if record.reason is None]
        return IndexReport(
            **self.counts,
            bad=tuple(
                (self.video_dir / record.name, record.reason)
                for record in sorted(records, key=lambda record: record.path)
                if record.reason is not None
            ),
            num_videos=len(indexed),
            num_segments=sum(record.num_segments for record in indexed),
            seconds=self.seconds,
        )

    def _drop_damaged(self) -> None:
        store = Store(self.config.output)
        for record in store.videos.values():
            if store.damage(record) is not None:
                self.writer.remove(record.id)
                self.counts["damaged"] += 1
        for record in store.failures:
            self.writer.remove(record.id)

    def _compare(self) -> list[str]:
        """The files to decode; what has gone is removed, what has moved gets its new name."""
        here = {
            path.relative_to(self.video_dir).as_posix(): path
            for path in video_files(self.video_dir, leave_out=self.config.output)
        }
        known = {record.name: record for record in self.writer.records.values()}
        gone = {name: record for name, record in known.items() if name not in here}
        by_content: dict[tuple[int, str], list[VideoRecord]] = {}
        for left in gone.values():
            if left.reason is None:
                by_content.setdefault((left.size, left.digest), []).append(left)
        pending = []
        for name, path in here.items():
            found, record = signature(path), known.get(name)
            size, modified = found or (0, 0)
            if record is not None and (record.size, record.modified_ns) == (size, modified):
                self.counts["unchanged"] += 1
                continue
            sizes = {size for size, _ in by_content}
            digest = content_digest(path) if record is not None or size in sizes else ""
            if record is not None and digest and record.digest == digest:
                self.writer.replace(dataclasses.replace(record, modified_ns=modified))
                self.counts["unchanged"] += 1
            elif record is None and (moved := by_content.get((size, digest))):
                old = moved.pop()
                del gone[old.name]
                self.writer.replace(
                    dataclasses.replace(old, path=os.fsencode(name), modified_ns=modified)
                )
                self.counts["moved"] += 1
            else:
                pending.append(name)
                self.counts["added" if record is None else "changed"] += 1
        for left in gone.values():
            self.writer.remove(left.id)
            self.counts["removed"] += 1
        self.known = known
        return pending

    def _decoded(self, names: list[str]) -> Iterator[tuple[str, Any]]:
        settings = {
            "cutting": dataclasses.asdict(self.cutting),
            "sampling": self.model.sampling.as_settings(),
            "resizing": self.model.model.encoder.resizing.as_settings(),
            "folder": str(self.work.absolute()),
        }
        paths = {str(self.video_dir / name): name for name in names}
        for path, answer in ask_processes(
            "garevla.search.decoding:decode",
            settings,
            paths,
            self.config.num_workers,
            self.config.timeout,
        ):
            yield paths[path], answer

    def _take(self, name: str, answer: Any) -> None:
        """Put what was decoded of a file in the place of what was known of it."""
        path = self.video_dir / name
        if isinstance(answer, str):  # crashed, or too slow
            answer = {"reason": answer, "signature": signature(path), "digest": ""}
        size, modified = answer["signature"] or (0, 0)
        record = VideoRecord(
            0, os.fsencode(name), size, modified, answer["digest"], reason=answer["reason"]
        )
        segments: list[SegmentData] = []
        scores = np.empty(0)
        if record.reason is None:
            try:
                segments, scores = self._encode(answer)
            except _UnusableError as error:
                record = dataclasses.replace(record, reason=str(error))
            finally:
                for kind in ("crops", "thumbnails"):
                    Path(answer[kind]).unlink(missing_ok=True)
        old = self.known.get(name)
        if old is not None and old.id in self.writer.records:
            self.writer.remove(old.id)
        if record.reason is not None:
            self.writer.add_failure(record)
            return
        self.seconds += answer["seconds"]
        record = dataclasses.replace(record, seconds=answer["seconds"])
        self.writer.add(record, segments, scores)

    def _encode(self, answer: dict[str, Any]) -> tuple[list[SegmentData], np.ndarray]:
        """Segments, and the best score (Q,) of each bank query with one of them."""
        size = self.model.model.encoder.image_size
        crops = np.memmap(answer["crops"], np.uint8, "r").reshape(-1, 3, size, size)
        thumbnails = Path(answer["thumbnails"]).read_bytes()
        most = self.model.sampling.max_frames
        found: list[SegmentData] = []
        best = np.full(len(self.bank), -np.inf, np.float32)
        for batch in slices_of(len(answer["segments"]), self.config.batch_size):
            parts = answer["segments"][batch]
            lengths = torch.tensor([len(positions) for _, _, positions, _, _ in parts])
            mask = torch.arange(most) < lengths[:, None]
            video = torch.zeros(len(parts), most, 3, size, size, dtype=torch.uint8)
            for row, (_, _, positions, _, _) in zip(video, parts, strict=True):
                row[: len(positions)] = torch.from_numpy(crops[positions])
            features = self._rounded(self.model.encode_frames(video, mask), mask)
            vectors = segment_vectors(features, mask)
            scores = self.model.scores(self.bank, features, mask)
            best = np.maximum(best, scores.amax(dim=1).numpy())
            for (begin, end, positions, first, length), frames, vector in zip(
                parts, features, vectors, strict=True
            ):
                jpeg = thumbnails[first : first + length]
                kept = frames[: len(positions)].numpy()
                found.append(SegmentData(begin, end, kept, vector.numpy(), jpeg))
        return found, best

    def _rounded(self, features: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """The features as they will be read: all that is computed of them here agrees with them."""
        kept = features[mask]
        if not kept.isfinite().all():
            raise _UnusableError("the model gives features that are no finite numbers")
        dtype = {"<f2": torch.float16, "<f4": torch.float32}[self.writer.state["frames_dtype"]]
        rounded = features.to(dtype).float()
        if not rounded[mask].isfinite().all():
            raise LibraryError(
                f"float16 cannot hold features up to {kept.abs().max():.3g}: index with "
                "frames_dtype float32"
            )
        return rounded.masked_fill(~mask.unsqueeze(-1), 0.0)

    def _commit_now_and_then(self) -> None:
        if time.monotonic() - self.committed > _SECONDS_BETWEEN_COMMITS:
            self.writer.commit()
            self.committed = time.monotonic()


class _UnusableError(Exception):
    """A video that can be decoded, but not encoded."""


@contextlib.contextmanager
def _bar(total: int, progress: bool) -> Iterator[Any]:
    if not progress:
        yield lambda: None
        return
    with require("tqdm").tqdm(total=total, desc="indexing", unit="video") as bar:
        yield bar.update
