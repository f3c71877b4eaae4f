"""What a data set's layout says, and loading a split with it."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import ClassVar, Literal

from garevla.data.annotation_files import check_is_text
from garevla.data.messages import check_error_or_skip, shortened
from garevla.data.splits import (
    AnnotationError,
    Caption,
    RetrievalSplit,
    log_repetitions,
    log_skipped,
)
from garevla.data.video_files import find_videos


class Layout(ABC):
    """How a data set writes down its captions and names its video files.

    Attributes:
        splits: the names of its splits; models are evaluated on the one called ``"test"``.
    """

    splits: ClassVar[tuple[str, ...]]

    @abstractmethod
    def read_captions(self, annotation_dir: Path, split: str) -> Sequence[Caption]:
        """Read the captions of a split, in the order in which its videos are to be.

        Sentences that describe a video together are joined to one caption here, and ids listed
        apart from their captions are matched with them.

        Args:
            annotation_dir: folder of the annotation files.
            split: one of ``splits``.

        Raises:
            FileNotFoundError: an annotation file does not exist.
            AnnotationError: an annotation file is not as it should be.
        """

    def find_videos(self, video_dir: Path, video_ids: Iterable[str]) -> dict[str, Path]:
        """Find the files of videos: ``<video_id>.mp4`` or another container, also in sub-folders.

        Returns:
            video id -> file, in the order of ``video_ids``; ids without a file are left out.

        Raises:
            FileNotFoundError: there is no such folder.
            AnnotationError: it cannot be told which file is a video's.
        """
        return find_videos(video_dir, video_ids)

    def load(
        self,
        annotation_dir: str | os.PathLike[str],
        video_dir: str | os.PathLike[str],
        split: str,
        *,
        missing: Literal["error", "skip"] = "error",
    ) -> RetrievalSplit:
        """Load a split without opening its videos; :func:`garevla.data.load_split` does that.

        Args:
            annotation_dir: folder of the annotation files.
            video_dir: folder of the videos.
            split: one of ``splits``.
            missing: what to do about videos without a file: ``"error"``, or ``"skip"`` them and
                log how many.

        Raises:
            FileNotFoundError: a folder, an annotation file, or (``missing="error"``) videos that
                do not exist.
            AnnotationError: an annotation file that is not as it should be, two files for one
                video, or nothing left.
            ValueError: a split that the layout does not have.
        """
        check_error_or_skip("missing", missing)
        captions, files = self.captions_and_files(annotation_dir, video_dir, split)
        video_ids = list(dict.fromkeys(caption.video_id for caption in captions))
        absent = [video_id for video_id in video_ids if video_id not in files]
        if absent and missing == "error":
            raise FileNotFoundError(
                f"{len(absent)} of {len(video_ids)} videos of split {split!r} have no file in "
                f"{video_dir}: {shortened(absent)}"
            )
        everything = RetrievalSplit(captions, files)
        present = everything.without(absent)
        if absent:
            log_skipped(everything, present, f"have no file in {video_dir}")
        if not present.videos:
            raise AnnotationError(f"no video of split {split!r} has a file in {video_dir}")
        return present

    def captions_and_files(
        self, annotation_dir: str | os.PathLike[str], video_dir: str | os.PathLike[str], split: str
    ) -> tuple[tuple[Caption, ...], dict[str, Path]]:
        """Read all captions of a split, and find the files of those videos that have one.

        Raises:
            FileNotFoundError, AnnotationError, ValueError: as :meth:`load`, save for videos
                without a file.
        """
        if split not in self.splits:
            raise ValueError(f"split must be one of {list(self.splits)}, got {split!r}")
        captions = tuple(self.read_captions(Path(annotation_dir), split))
        if not captions:
            raise AnnotationError(f"split {split!r} has no caption in {annotation_dir}")
        for caption in captions:
            where = f"split {split!r} in {annotation_dir}, a caption of {caption.video_id!r}"
            check_is_text(where, caption.video_id + caption.text)
        log_repetitions(captions, split)
        video_ids = dict.fromkeys(caption.video_id for caption in captions)
        return captions, self.find_videos(Path(video_dir), video_ids)
