"""Finding the video files of a data set that cannot be read, before they are needed."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from garevla.data import layouts
from garevla.data._optional import require
from garevla.data.decoding_processes import try_decoding
from garevla.data.frame_sampling import DEFAULT_SAMPLING, Sampling, frame_indices
from garevla.data.good_files import GoodFiles, signature
from garevla.data.messages import check_error_or_skip, shortened
from garevla.data.pyav_reader import Packets, list_packets
from garevla.data.splits import RetrievalSplit, log_skipped
from garevla.data.video import Verdict
from garevla.utils.processes import ALONE, Processes

_log = logging.getLogger(__name__)


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
        of_unknown_length: good files whose containers do not say how long they are, such as
            streams and GIFs: all that is there can be decoded, but a missing end would not show.
    """

    bad: tuple[BadVideo, ...]
    num_checked: int
    of_unknown_length: tuple[Path, ...] = ()

    def lines(self) -> list[str]:
        """What is wrong, in lines: one for each reason, however many files have it."""
        paths_of: dict[str, list[Path]] = {}
        for path, reason in self.bad:
            paths_of.setdefault(reason, []).append(path)
        return [
            f"{paths[0]}: {reason}"
            if len(paths) == 1
            else f"{len(paths)} files, {reason}: {shortened(paths)}"
            for reason, paths in paths_of.items()
        ]


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
    processes: Processes = ALONE,
) -> CheckReport:
    """Decode each video from its first frame to its last, and compare with what training reads.

    How certain that is: a file passes if it has all the bytes that its container declares, if no
    decoder meets an error in any frame or has to make up a part of one, and if decord and PyAV,
    where both can read it, decode the sampled frames alike. What may remain is a damaged byte that
    decodes to another picture, often in VP9 and HEVC, at times in VP8, seldom in H.264, and the
    missing end of a file that does not say how long it is.

    Every file is decoded in a process of its own kind, so that a decoder that crashes or never ends
    is a bad file and no more.

    Args:
        paths: video files.
        sampling: which frames training would read.
        num_workers: processes that decode; at least one is used.
        timeout: seconds for one file.
        cache: a JSON file where files found good are noted with their size and time of change;
            they are not decoded again. Missing or unusable caches are written anew.
        progress: show a tqdm bar.
        processes: that share the files; each returns the report of all, the first writes the cache.

    Raises:
        ImportError: PyAV (or, for the bar, tqdm) is not installed.
        ValueError: ``timeout`` is not positive.
        RuntimeError: an error that is no file's fault.
    """
    require("av")
    if not timeout > 0:
        raise ValueError(f"timeout must be positive, got {timeout}")
    files = [Path(path) for path in paths]
    good = GoodFiles(cache, sampling)
    signatures = {path: signature(path) for path in files}
    # By the first: it may have written the cache before the others look.
    noted = processes.of_first(lambda: {path: good.find(path, signatures[path]) for path in files})
    verdicts = {path: verdict for path, verdict in noted.items() if verdict is not None}
    pending = processes.share([path for path in noted if path not in verdicts])
    with contextlib.ExitStack() as stack:
        if processes.is_first:
            # Also when interrupted: what was found good need not be decoded again.
            stack.callback(good.save)
        bar = None
        if progress:
            tqdm = require("tqdm").tqdm
            bar = stack.enter_context(tqdm(total=len(pending), desc="checking videos", unit="file"))
        own: dict[Path, Verdict] = {}
        for path, verdict in try_decoding(pending, sampling, max(1, num_workers), timeout):
            own[path] = verdict
            good.note(path, signatures[path], verdict)
            if bar is not None:
                bar.update()
        for found in processes.gather(own):
            verdicts.update(found)
            for path, verdict in found.items():
                good.note(path, signatures[path], verdict)
    checked = [(path, verdicts[path]) for path in files]
    return CheckReport(
        tuple(BadVideo(path, reason) for path, (reason, _) in checked if reason is not None),
        len(files),
        tuple(path for path, verdict in checked if verdict == Verdict(None, False)),
    )


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
    everything = layouts.layout_of(layout, annotation_dir).captions_and_files(
        annotation_dir, video_dir, split
    )
    return _check_split(everything, video_dir, options)[0]


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
        layout: the name of the data set's layout, see :func:`garevla.data.register_layout`;
            ``"auto"``: the one that ``annotation_dir`` looks like.
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
    everything = layouts.layout_of(layout, annotation_dir).captions_and_files(
        annotation_dir, video_dir, split
    )
    report, unusable = _check_split(everything, video_dir, options)
    if report.of_unknown_length:
        _log.info(
            "%d of %d videos of split %r do not say how long they are, a missing end would not "
            "show: %s",
            len(report.of_unknown_length),
            report.num_checked,
            split,
            shortened(report.of_unknown_length),
        )
    if report.bad and (bad_videos == "error" or len(report.bad) == report.num_checked):
        lines = shortened(report.lines(), "\n  ")
        error = BadVideosError(
            f"{len(report.bad)} of {report.num_checked} videos of split {split!r} cannot be "
            f"used:\n  {lines}"
        )
        error.report = report
        raise error
    if not unusable:
        return everything
    readable = everything.without(unusable)
    log_skipped(everything, readable, "are missing or cannot be read")
    return readable


def _check_split(
    split: RetrievalSplit, video_dir: str | os.PathLike[str], options: dict[str, Any]
) -> tuple[CheckReport, set[str]]:
    """Check the videos of a split that may lack files; return also the ids that cannot be used.

    An id without a file is a bad one, and is not looked for.
    """
    video_ids = list(dict.fromkeys(caption.video_id for caption in split.captions))
    absent = without_file(split, video_dir)
    report = check_videos(dict.fromkeys(split.videos.values()), **options)
    found = dict(report.bad)
    reasons = {i: found[path] for i, path in split.videos.items() if path in found}
    reasons |= _times_beyond(split, reasons, options.get("sampling", DEFAULT_SAMPLING))
    unusable = {i: BadVideo(split.videos[i], reason) for i, reason in reasons.items()} | absent
    bad = dict.fromkeys(unusable[i] for i in video_ids if i in unusable)
    return CheckReport(tuple(bad), len(video_ids), report.of_unknown_length), set(unusable)


def without_file(split: RetrievalSplit, video_dir: str | os.PathLike[str]) -> dict[str, BadVideo]:
    """The videos of a split's captions that have no file."""
    video_ids = dict.fromkeys(caption.video_id for caption in split.captions)
    return {
        i: BadVideo(Path(video_dir, f"{i}.mp4"), f"no such file in {video_dir}")
        for i in video_ids
        if i not in split.videos
    }


def _times_beyond(
    split: RetrievalSplit, bad: Collection[str], sampling: Sampling
) -> dict[str, str]:
    """The ids whose part of a good file has no frame, each with the reason."""
    packets: dict[Path, Packets] = {}
    reasons = {}
    for video_id, path in split.videos.items():
        if video_id not in split.time_ranges or video_id in bad:
            continue
        if path not in packets:
            packets[path] = list_packets(path)
        try:
            frame_indices(
                packets[path].number,
                packets[path].frame_rate(),
                split.sampling_of(video_id, sampling),
            )
        except ValueError as error:
            reasons[video_id] = str(error)
    return reasons
