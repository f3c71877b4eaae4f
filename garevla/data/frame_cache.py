"""A folder of cached frames, a file for each video: finding them, and never the wrong ones."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import os
from pathlib import Path
from typing import Literal

from torch import Tensor

from garevla.data import cached_frames, layouts
from garevla.data.cached_frames import Description, FrameCacheError
from garevla.data.frame_sampling import DEFAULT_SAMPLING, Sampling
from garevla.data.good_files import signature
from garevla.data.messages import check_error_or_skip, shortened
from garevla.data.resizing import Resizing
from garevla.data.splits import RetrievalSplit, log_skipped

_log = logging.getLogger(__name__)


class FrameCache:
    """What :func:`garevla.data.cache_frames` has written into a folder.

    Args:
        folder: the folder.
        resizing: how frames became images; or their side alone, in pixels, for the usual way.
    """

    def __init__(self, folder: str | os.PathLike[str], resizing: Resizing | int) -> None:
        self.folder = Path(folder)
        self.resizing = Resizing.of(resizing)

    def path_of(self, video_id: str) -> Path:
        """The file of a video's frames, whether or not it is there.

        Its name is a hash: ids may be too long for file names, lead out of the folder, or differ
        in upper and lower case alone, which some file systems take for the same.
        """
        name = hashlib.sha256(video_id.encode()).hexdigest()[:32]
        return self.folder / name[:2] / f"{name[2:]}.safetensors"

    def describe(self, video_id: str, file: Path, sampling: Sampling) -> Description:
        """What the frames of a video would have to be of."""
        return cached_frames.describe(video_id, file, sampling, self.resizing)

    def read(self, video_id: str, file: Path, sampling: Sampling) -> Tensor:
        """Read a video's frames.

        Args:
            video_id: the video.
            file: its file, which must be as it was when it was decoded. Where there is none, there
                is nothing to compare with.
            sampling: which frames.

        Returns:
            uint8 (n, 3, H, W), not to be written to; what ``VideoTransform.crop``
            makes of ``read_frames(file, sampling)``.

        Raises:
            FrameCacheError: they are not there, damaged, or of another file or other settings.
        """
        path = self.path_of(video_id)
        try:
            found, frames = cached_frames.read(path)
        except FileNotFoundError:
            raise FrameCacheError(
                f"{self.folder} has no frames of video {video_id!r}: 'garevla cache' makes them"
            ) from None
        self._check_settings(found, path, sampling)
        if (reason := self.mismatch(found, video_id, file)) is not None:
            raise FrameCacheError(f"{path}: {reason}")
        return frames

    def find(self, video_id: str, sampling: Sampling) -> Description | None:
        """What is there of a video, by its file's header; None where there is nothing.

        Raises:
            FrameCacheError: it is damaged, or of other settings.
        """
        path = self.path_of(video_id)
        try:
            found = cached_frames.read_description(path)
        except FileNotFoundError:
            return None
        self._check_settings(found, path, sampling)
        return found

    def mismatch(self, found: Description, video_id: str, file: Path) -> str | None:
        """Why frames are not those of a video's file, or None."""
        if found.video_id != video_id:
            return f"the frames are of video {found.video_id!r}, not of {video_id!r}"
        now = signature(file)
        if now is not None and (found.file, found.signature) != (file.name, now):
            return (
                f"the frames are of another file than {file} (cached {_shown(found)}, now "
                f"{file.name} of {now[0]} bytes): run 'garevla cache' again"
            )
        return None

    def load_split(
        self,
        annotation_dir: str | os.PathLike[str],
        video_dir: str | os.PathLike[str],
        split: str,
        *,
        layout: str = layouts.DEFAULT_LAYOUT,
        sampling: Sampling = DEFAULT_SAMPLING,
        bad_videos: Literal["error", "skip"] = "error",
    ) -> RetrievalSplit:
        """Load a split of which every video is in the cache, without opening video files.

        Args:
            annotation_dir, video_dir, split, layout: as for :func:`garevla.data.load_split`.
                ``video_dir`` may lack videos, whose frames are then compared with no file.
            sampling: which frames are wanted.
            bad_videos: what to do about videos that are not in the cache, among them those whose
                files could not be decoded: ``"error"``, or ``"skip"`` them and log how many.

        Raises:
            FrameCacheError: frames that are damaged, or of other files or settings; or missing
                (``bad_videos="error"``, or all).
            FileNotFoundError, AnnotationError, ValueError: as :func:`garevla.data.load_split`.
        """
        check_error_or_skip("bad_videos", bad_videos)
        everything = layouts.layout_of(layout, annotation_dir).captions_and_files(
            annotation_dir, video_dir, split
        )
        video_ids = list(dict.fromkeys(caption.video_id for caption in everything.captions))
        found = {
            video_id: description
            for video_id in video_ids
            if (description := self.find(video_id, everything.sampling_of(video_id, sampling)))
        }
        absent = [i for i in video_ids if i not in found]
        if absent and (bad_videos == "error" or not found):
            raise FrameCacheError(
                f"{self.folder} has no frames of {len(absent)} of {len(video_ids)} videos of split "
                f"{split!r}: 'garevla cache' makes them, and says which files cannot be decoded. "
                f"They are: {shortened(absent)}"
            )
        without_file = [i for i in found if i not in everything.videos]
        if without_file:
            _log.info(
                "%d of %d videos of split %r have no file in %s: their cached frames are compared "
                "with none",
                len(without_file),
                len(found),
                split,
                video_dir,
            )
        paths = {i: everything.videos.get(i, Path(video_dir, found[i].file)) for i in found}
        self._check_all(found, paths)
        whole = dataclasses.replace(everything, videos=paths)
        if not absent:
            return whole
        cached = whole.without(absent)
        log_skipped(whole, cached, f"are not in the frame cache {self.folder}")
        return cached

    def _check_all(self, found: dict[str, Description], files: dict[str, Path]) -> None:
        reasons = [
            reason
            for video_id, description in found.items()
            if (reason := self.mismatch(description, video_id, files[video_id])) is not None
        ]
        if reasons:
            lines = shortened(reasons, "\n  ")
            raise FrameCacheError(
                f"{self.folder}: frames of {len(reasons)} of {len(found)} videos cannot be used:\n"
                f"  {lines}"
            )

    def _check_settings(self, found: Description, path: Path, sampling: Sampling) -> None:
        """Raise FrameCacheError where frames were taken with other settings."""
        wanted = cached_frames.frame_settings(sampling, self.resizing)
        # Files of earlier versions say the size alone.
        taken = {**Resizing().as_settings(), **found.settings}
        changes = [
            f"{name} {taken.get(name)!r}, not {wanted.get(name)!r}"
            for name in wanted | taken
            if taken.get(name) != wanted.get(name)
        ]
        if changes:
            flags = " ".join(
                f"--{name} {value}" for name, value in wanted.items() if name in _FLAGS
            )
            raise FrameCacheError(
                f"{path}: the frames were taken with {', '.join(changes)}; make those that are "
                f"needed in another folder: garevla cache {flags}"
            )


_FLAGS = (
    *("max_frames", "sampling", "frames_per_second"),
    *(each.name for each in dataclasses.fields(Resizing)),
)


def _shown(found: Description) -> str:
    size = "of unknown size" if found.signature is None else f"of {found.signature[0]} bytes"
    return f"{found.file} {size}"
