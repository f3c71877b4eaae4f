"""Finding the video files of a data set that cannot be read, before they are needed."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from garevla.data import layouts
from garevla.data._optional import require
from garevla.data.decoding_processes import try_decoding
from garevla.data.frame_sampling import DEFAULT_SAMPLING, Sampling
from garevla.data.good_files import GoodFiles, signature
from garevla.data.messages import check_error_or_skip, shortened
from garevla.data.splits import RetrievalSplit, log_skipped


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
    sampling: Sampling = DEFAULT_SAMPLING,
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
        sampling: which frames training would read.
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
    good = GoodFiles(cache, sampling)
    signatures = {path: signature(path) for path in files}
    pending = [path for path in signatures if not good.has(path, signatures[path])]
    reasons: dict[Path, str | None] = {}
    with contextlib.ExitStack() as stack:
        # Also when interrupted: what was found good need not be decoded again.
        stack.callback(good.save)
        bar = None
        if progress:
            tqdm = require("tqdm").tqdm
            bar = stack.enter_context(tqdm(total=len(pending), desc="checking videos", unit="file"))
        for path, reason in try_decoding(pending, sampling, max(1, num_workers), timeout):
            reasons[path] = reason
            if reason is None:
                good.add(path, signatures[path])
            if bar is not None:
                bar.update()
    bad = tuple(
        BadVideo(path, reason) for path in files if (reason := reasons.get(path)) is not None
    )
    return CheckReport(bad, len(files))


def check_split(
    annotation_dir: str | os.PathLike[str],
    video_dir: str | os.PathLike[str],
    split: str,
    *,
    layout: str = layouts.DEFAULT_LAYOUT,
    **options: Any,
) -> CheckReport:
    """Check all videos of a split; those without a file are bad ones too.

    Args:
        annotation_dir, video_dir, split, layout: as for :func:`load_split`.
        options: as for :func:`check_videos`.

    Raises:
        FileNotFoundError, AnnotationError, ValueError: as :func:`load_split`.
    """
    whole = _whole_split(annotation_dir, video_dir, split, layout)
    return check_videos(whole.videos.values(), **options)


def load_split(
    annotation_dir: str | os.PathLike[str],
    video_dir: str | os.PathLike[str],
    split: str,
    *,
    layout: str = layouts.DEFAULT_LAYOUT,
    bad_videos: Literal["error", "skip"] = "error",
    **options: Any,
) -> RetrievalSplit:
    """Load a split of which every video can be read.

    Args:
        annotation_dir: folder of the annotation files.
        video_dir: folder of the videos, also in sub-folders.
        split: one of the layout's splits.
        layout: the name of the data set's layout, see :func:`garevla.data.register_layout`.
        bad_videos: what to do about videos that are missing or cannot be read: ``"error"``, or
            ``"skip"`` them and log how many videos and captions that leaves out.
        options: as for :func:`check_videos`.

    Raises:
        BadVideosError: there are bad videos, and they are not to be skipped, or nothing else is
            left.
        FileNotFoundError: a folder or an annotation file does not exist.
        AnnotationError: an annotation file is not as it should be, or two files fit one video.
        ValueError: there is no such layout or split, or an argument is out of its range.
    """
    check_error_or_skip("bad_videos", bad_videos)
    whole = _whole_split(annotation_dir, video_dir, split, layout)
    report = check_videos(whole.videos.values(), **options)
    if not report.bad:
        return whole
    if bad_videos == "error" or len(report.bad) == report.num_checked:
        lines = shortened([f"{path}: {reason}" for path, reason in report.bad], "\n  ")
        error = BadVideosError(
            f"{len(report.bad)} of {report.num_checked} videos of split {split!r} cannot be "
            f"used:\n  {lines}"
        )
        error.report = report
        raise error
    bad_paths = {path for path, _ in report.bad}
    readable = whole.without({i for i, path in whole.videos.items() if path in bad_paths})
    log_skipped(whole, readable, "are missing or cannot be read")
    return readable


def _whole_split(
    annotation_dir: str | os.PathLike[str],
    video_dir: str | os.PathLike[str],
    split: str,
    layout: str,
) -> RetrievalSplit:
    """A split with a path for videos without a file too, which the check finds missing."""
    captions, files = layouts.layout(layout).captions_and_files(annotation_dir, video_dir, split)
    video_ids = dict.fromkeys(caption.video_id for caption in captions)
    return RetrievalSplit(
        captions, {i: files.get(i, Path(video_dir, f"{i}.mp4")) for i in video_ids}
    )
