"""Decoding videos once, into a folder of cached frames."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from garevla.data import cached_frames, layouts
from garevla.data._optional import require
from garevla.data.cache_settings import CacheConfig
from garevla.data.cached_frames import DamagedFramesError
from garevla.data.check import BadVideo, CheckReport, without_file
from garevla.data.decoding_processes import as_verdict, ask_processes
from garevla.data.frame_cache import FrameCache
from garevla.data.frame_sampling import DEFAULT_SAMPLING, Sampling
from garevla.data.resizing import Interpolation, ResizeMode, Resizing
from garevla.data.splits import AnnotationError, RetrievalSplit
from garevla.data.video import Verdict
from garevla.data.video_files import find_all_videos
from garevla.utils.files import remove_unfinished
from garevla.utils.locks import lock_folder

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CachingReport:
    """What was cached.

    Attributes:
        folder: where.
        num_new: videos whose frames were written.
        num_kept: videos whose frames were there already.
        check: the files that cannot be used, of which nothing is in the cache.
    """

    folder: Path
    num_new: int
    num_kept: int
    check: CheckReport


def run_caching(config: CacheConfig, *, progress: bool = True) -> CachingReport:
    """Cache the videos of a folder, or of splits; see :func:`cache_frames`.

    Raises:
        FileNotFoundError, AnnotationError, ValueError: as :meth:`garevla.data.Layout.load`, or
            a folder without videos.
    """
    everything = RetrievalSplit((), {})
    absent: dict[str, BadVideo] = {}
    if config.annotation_dir is None:
        everything = RetrievalSplit((), find_all_videos(config.video_dir))
    else:
        layout = layouts.layout_of(config.layout, config.annotation_dir)
        for name in config.splits or (layout.train_split, "test"):
            split = layout.captions_and_files(config.annotation_dir, config.video_dir, name)
            everything = RetrievalSplit(
                (), everything.videos | split.videos, everything.time_ranges | split.time_ranges
            )
            absent |= without_file(split, config.video_dir)
    if not everything.videos:
        raise AnnotationError(f"none of {len(absent)} videos has a file in {config.video_dir}")
    report = cache_frames(
        everything,
        config.output,
        sampling=config.frame_sampling,
        image_size=config.image_size,
        resize_mode=config.resize_mode,
        interpolation=config.interpolation,
        num_workers=config.num_workers,
        verify=config.verify,
        progress=progress,
    )
    check = CheckReport(
        (*absent.values(), *report.check.bad),
        report.check.num_checked + len(absent),
        report.check.of_unknown_length,
    )
    return CachingReport(report.folder, report.num_new, report.num_kept, check)


def cache_frames(
    videos: RetrievalSplit | Mapping[str, str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    sampling: Sampling = DEFAULT_SAMPLING,
    image_size: int = 224,
    resize_mode: ResizeMode = "shortest",
    interpolation: Interpolation = "bicubic",
    num_workers: int = 1,
    timeout: float = 300.0,
    verify: bool = False,
    progress: bool = True,
) -> CachingReport:
    """Decode videos once, and keep the sampled, resized and cropped frames in a folder.

    Each video becomes a safetensors file of its own, which is whole or not there: a call that is
    stopped or killed at any moment loses the videos it was at, and the next one goes on. A video
    whose file has changed since is decoded again.

    Files are checked as by :func:`check_videos`; bad ones are reported and not cached. The frames
    are those of :func:`garevla.data.read_frames`, to the bit.

    Args:
        videos: a split, or video id -> file.
        output: the folder, made where there is none. It must hold no frames of these videos with
            another sampling or resizing.
        sampling: which frames.
        image_size, resize_mode, interpolation: how they become images, as in
            :class:`~garevla.data.resizing.Resizing`.
        num_workers: processes that decode; at least one is used.
        timeout: seconds for one file.
        verify: also read the frames that are there already, and replace damaged ones.
        progress: show a tqdm bar.

    Raises:
        FrameCacheError: the folder holds frames with other settings.
        InUseError: another process is writing into the folder.
        OSError: the folder cannot be written into, or its disk is full; what is there stays, and
            the same call goes on.
        ImportError: PyAV, torchvision, safetensors or (for the bar) tqdm is not installed.
        ValueError: an argument is out of its range.
        RuntimeError: an error that is no file's fault.
    """
    for module in ("av", "torchvision", "safetensors"):
        require(module)
    if not isinstance(videos, RetrievalSplit):
        videos = RetrievalSplit((), {video_id: Path(path) for video_id, path in videos.items()})
    files = videos.videos
    samplings = {video_id: videos.sampling_of(video_id, sampling) for video_id in files}
    if not timeout > 0:
        raise ValueError(f"timeout must be positive, got {timeout}")
    resizing = Resizing(image_size, resize_mode, interpolation)
    cache = FrameCache(output, resizing)
    with lock_folder(cache.folder), contextlib.ExitStack() as stack:
        _remove_unfinished(cache.folder)
        # What processes that were stopped have left.
        stack.callback(_remove_unfinished, cache.folder)
        pending = {
            i: file for i, file in files.items() if not _has(cache, i, file, sampling, verify)
        }
        _log_size(cache, len(pending), len(files), sampling)
        jobs = (
            {
                "path": str(cache.path_of(video_id)),
                "video_id": video_id,
                "file": str(file),
                "sampling": samplings[video_id].as_settings(),
            }
            for video_id, file in pending.items()
        )
        bar = None
        if progress:
            tqdm = require("tqdm").tqdm
            bar = stack.enter_context(
                tqdm(
                    total=len(files),
                    initial=len(files) - len(pending),
                    desc="caching videos",
                    unit="video",
                )
            )
        verdicts = {}
        answers = ask_processes(
            "garevla.data.cached_frames:cache",
            resizing.as_settings(),
            jobs,
            max(1, num_workers),
            timeout,
        )
        for job, answer in answers:
            video_id = str(job["video_id"])
            verdicts[video_id] = verdict = as_verdict(answer)
            if verdict.reason is not None:
                # Frames of what the file was before.
                cache.path_of(video_id).unlink(missing_ok=True)
            if bar is not None:
                bar.update()
    in_order = [(file, verdicts[video_id]) for video_id, file in pending.items()]
    bad = [BadVideo(file, reason) for file, (reason, _) in in_order if reason is not None]
    unknown = [file for file, verdict in in_order if verdict == Verdict(None, False)]
    # Of clips that share a file, that once.
    check = CheckReport(tuple(dict.fromkeys(bad)), len(files), tuple(dict.fromkeys(unknown)))
    num_kept = len(files) - len(pending)
    return CachingReport(cache.folder, len(pending) - len(bad), num_kept, check)


def _has(cache: FrameCache, video_id: str, file: Path, sampling: Sampling, verify: bool) -> bool:
    """Whether there are frames of a video's file, and, where these are to be verified, good ones.

    Raises:
        FrameCacheError: there are some of other settings.
    """
    try:
        found = cache.find(video_id, sampling)
        if found is not None and verify:
            cached_frames.read(cache.path_of(video_id))
    except DamagedFramesError:
        return False
    return found is not None and cache.mismatch(found, video_id, file) is None


def _log_size(cache: FrameCache, num_pending: int, num_videos: int, sampling: Sampling) -> None:
    """Say how large the files will be, and whether there is room for them."""
    of_one = sampling.max_frames * 3 * cache.resizing.image_size**2
    free = shutil.disk_usage(cache.folder).free
    fits = num_pending * of_one <= free
    _log.log(
        logging.INFO if fits else logging.WARNING,
        "%s: %d of %d videos to be decoded, at most %s (%s each%s); %s are free%s",
        cache.folder,
        num_pending,
        num_videos,
        _size(num_pending * of_one),
        _size(of_one),
        ", less where a video gives fewer frames" if sampling.mode == "grid" else "",
        _size(free),
        "" if fits else ", which may not be enough",
    )


def _size(num_bytes: float) -> str:
    return f"{num_bytes / 2**30:.2f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:.2f} MiB"


def _remove_unfinished(folder: Path) -> None:
    for sub_folder in folder.iterdir():
        # Of files of any name.
        remove_unfinished(sub_folder / "*")
