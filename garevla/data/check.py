"""Finding the video files of a data set that cannot be read, before they are needed."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import time
import traceback
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Literal, NamedTuple

from garevla.data._optional import require
from garevla.data.msrvtt import (
    RetrievalSplit,
    Split,
    find_videos,
    log_skipped,
    read_captions,
    shortened,
)
from garevla.data.video import Sampling, VideoError, decode_all_frames, read_frames


class BadVideo(NamedTuple):
    """A file that cannot be used, and why."""

    path: Path
    reason: str


@dataclass(frozen=True)
class CheckReport:
    """What a check found.

    Attributes:
        bad: the files that cannot be used, in the order they were given.
        num_checked: how many files there were, good and bad.
    """

    bad: tuple[BadVideo, ...]
    num_checked: int


class BadVideosError(RuntimeError):
    """A split with videos that cannot be used.

    Attributes:
        report: all of them; the message lists the first.
    """

    report: CheckReport | None = None


def check_videos(
    paths: Iterable[str | os.PathLike[str]],
    *,
    max_frames: int = 12,
    sampling: Sampling = "grid",
    frames_per_second: float = 1.0,
    num_workers: int = 1,
    timeout: float = 300.0,
    cache: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> CheckReport:
    """Read each video as training would, then decode all of it.

    All of it, because decord reads ahead: damage behind the last sampled frame is met on some
    reads of a file and not on others. Every file is decoded in a process of its own kind, so that
    a decoder that crashes or never ends is a bad file and no more.

    Args:
        paths: video files.
        max_frames, sampling, frames_per_second: as for :func:`garevla.data.read_frames`.
        num_workers: processes that decode; at least one is used.
        timeout: seconds for one file.
        cache: a JSON file where files found good are noted with their size and time of change;
            they are not decoded again. Missing or unusable caches are written anew.
        progress: show a tqdm bar.

    Raises:
        ImportError: decord (or, for the bar, tqdm) is not installed.
        ValueError: ``timeout`` is not positive.
        RuntimeError: an error that is no file's fault.
    """
    require("decord")
    if not timeout > 0:
        raise ValueError(f"timeout must be positive, got {timeout}")
    files = [Path(path) for path in paths]
    settings = {
        "max_frames": max_frames,
        "sampling": sampling,
        "frames_per_second": frames_per_second,
    }
    known = _Cache(cache, settings)
    signatures = {path: _signature(path) for path in files}
    pending = [path for path, signature in signatures.items() if not known.has(path, signature)]
    reasons: dict[Path, str | None] = {}
    with contextlib.ExitStack() as stack:
        # Also when interrupted: what was found good need not be decoded again.
        stack.callback(known.save)
        bar = None
        if progress:
            tqdm = require("tqdm").tqdm
            bar = stack.enter_context(tqdm(total=len(pending), desc="checking videos", unit="file"))
        for path, reason in _run(pending, settings, max(1, num_workers), timeout):
            reasons[path] = reason
            if reason is None:
                known.add(path, signatures[path])
            if bar is not None:
                bar.update()
    bad = tuple(BadVideo(path, reasons[path]) for path in files if reasons.get(path) is not None)
    return CheckReport(bad, len(files))


def check_split(
    annotation_dir: str | os.PathLike[str],
    video_dir: str | os.PathLike[str],
    split: Split,
    **options: Any,
) -> CheckReport:
    """Check all videos of a split; those without a file are bad ones too.

    Args:
        annotation_dir, video_dir, split: as for :func:`garevla.data.load_msrvtt`.
        options: as for :func:`check_videos`.

    Raises:
        FileNotFoundError, AnnotationError: as :func:`garevla.data.load_msrvtt`.
    """
    return check_videos(_whole_split(annotation_dir, video_dir, split).videos.values(), **options)


def load_split(
    annotation_dir: str | os.PathLike[str],
    video_dir: str | os.PathLike[str],
    split: Split,
    *,
    bad_videos: Literal["error", "skip"] = "error",
    **options: Any,
) -> RetrievalSplit:
    """Load a split of which every video can be read.

    Args:
        annotation_dir, video_dir, split: as for :func:`garevla.data.load_msrvtt`.
        bad_videos: what to do about videos that are missing or cannot be read: ``"error"``, or
            ``"skip"`` them and log how many videos and captions that leaves out.
        options: as for :func:`check_videos`.

    Raises:
        BadVideosError: there are bad videos, and they are not to be skipped, or nothing else is
            left.
        FileNotFoundError, AnnotationError: as :func:`garevla.data.load_msrvtt`.
    """
    if bad_videos not in ("error", "skip"):
        raise ValueError(f"bad_videos must be 'error' or 'skip', got {bad_videos!r}")
    everything = _whole_split(annotation_dir, video_dir, split)
    report = check_videos(everything.videos.values(), **options)
    if not report.bad:
        return everything
    if bad_videos == "error" or len(report.bad) == report.num_checked:
        lines = shortened([f"{path}: {reason}" for path, reason in report.bad], "\n  ")
        error = BadVideosError(
            f"{len(report.bad)} of {report.num_checked} videos of split {split!r} cannot be "
            f"used:\n  {lines}"
        )
        error.report = report
        raise error
    bad_paths = {path for path, _ in report.bad}
    left = everything.without({i for i, path in everything.videos.items() if path in bad_paths})
    log_skipped(everything, left, "are missing or cannot be read")
    return left


def _whole_split(
    annotation_dir: str | os.PathLike[str], video_dir: str | os.PathLike[str], split: Split
) -> RetrievalSplit:
    captions = read_captions(annotation_dir, split)
    video_ids = list(dict.fromkeys(caption.video_id for caption in captions))
    files = find_videos(video_dir, video_ids)
    return RetrievalSplit(
        captions, {i: files.get(i, Path(video_dir, f"{i}.mp4")) for i in video_ids}
    )


# ------------------------------------------------------------------------- processes


class _Worker:
    """A process that decodes one file at a time."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.connection, theirs = multiprocessing.Pipe()
        self.process = multiprocessing.Process(
            target=_check_files, args=(theirs, settings), daemon=True
        )
        self.process.start()
        # Else the pipe would stay open when the process dies.
        theirs.close()
        self.path: Path | None = None
        self.deadline = float("inf")

    def start(self, path: Path, timeout: float) -> None:
        self.path = path
        self.deadline = time.monotonic() + timeout
        # A process that has just died shows when its answer is awaited.
        with contextlib.suppress(OSError):
            self.connection.send(path)

    def stop(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()


def _run(
    paths: list[Path], settings: dict[str, Any], num_workers: int, timeout: float
) -> Iterator[tuple[Path, str | None]]:
    """Yield each file with the reason why it is bad, or None, in the order they get done."""
    waiting = iter(paths)
    workers: list[_Worker] = []
    try:
        for _, path in zip(range(num_workers), waiting, strict=False):
            workers.append(_Worker(settings))
            workers[-1].start(path, timeout)
        while workers:
            soonest = min(worker.deadline for worker in workers)
            ready = wait(
                [worker.connection for worker in workers],
                timeout=max(0.0, soonest - time.monotonic()),
            )
            for worker in list(workers):
                reason, usable = None, True
                if worker.connection in ready:
                    try:
                        reason = worker.connection.recv()
                    except (EOFError, OSError):
                        worker.process.join()
                        reason = f"the decoder crashed (exit code {worker.process.exitcode})"
                        usable = False
                elif time.monotonic() >= worker.deadline:
                    reason, usable = f"not decoded within {timeout:g} seconds", False
                else:
                    continue
                if isinstance(reason, Exception):
                    raise reason
                done = worker.path
                following = next(waiting, None)
                if not usable or following is None:
                    worker.stop()
                    workers.remove(worker)
                if following is not None:
                    if not usable:
                        worker = _Worker(settings)
                        workers.append(worker)
                    worker.start(following, timeout)
                yield done, reason
    finally:
        for worker in workers:
            worker.stop()


def _check_files(connection: Connection, settings: dict[str, Any]) -> None:
    decord = require("decord")
    # The report says what is wrong; FFmpeg's own lines would tear the progress bar.
    decord.logging.set_level(decord.logging.QUIET)
    # The pipe ends with the process that asked.
    with contextlib.suppress(EOFError):
        while True:
            connection.send(_reason(connection.recv(), settings))


def _reason(path: Path, settings: dict[str, Any]) -> str | Exception | None:
    """Why a file is bad, None, or an error that is not the file's fault."""
    try:
        read_frames(path, **settings)
        decode_all_frames(path)
    except VideoError as error:
        return error.reason
    except Exception:
        return RuntimeError(f"checking {path} failed:\n{traceback.format_exc()}")
    return None


# ----------------------------------------------------------------------------- cache


class _Cache:
    """Files found good with some settings, in a JSON file."""

    def __init__(self, path: str | os.PathLike[str] | None, settings: dict[str, Any]) -> None:
        self.path = None if path is None else Path(path)
        self.settings = settings
        self.good: dict[str, list[int]] = {}
        if self.path is not None:
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                stored = json.loads(self.path.read_text(encoding="utf-8"))
                if stored["settings"] == settings:
                    self.good = dict(stored["good"])

    def has(self, path: Path, signature: list[int] | None) -> bool:
        return signature is not None and self.good.get(os.path.abspath(path)) == signature

    def add(self, path: Path, signature: list[int] | None) -> None:
        if signature is not None:
            self.good[os.path.abspath(path)] = signature

    def save(self) -> None:
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_name(f"{self.path.name}.{os.getpid()}.partial")
        content = {"settings": self.settings, "good": self.good}
        partial.write_text(json.dumps(content), encoding="utf-8")
        os.replace(partial, self.path)


def _signature(path: Path) -> list[int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns]
