"""What a data set's layout says, and loading a split with it."""

from __future__ import annotations

import logging
import os
from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar, Literal

from garevla.data.annotation_files import check_is_text
from garevla.data.messages import check_error_or_skip, shortened
from garevla.data.splits import (
    AnnotationError,
    Annotations,
    RetrievalSplit,
    log_skipped,
    repeated_captions,
    shared_captions,
)
from garevla.data.video_files import find_named_videos

_log = logging.getLogger(__name__)


class Layout(ABC):
    """How a data set writes down its captions and names its video files.

    Attributes:
        splits: the names of its splits; models are evaluated on the one called ``"test"`` unless
            told otherwise.
        train_split: the one that models are trained on unless told otherwise.
        looks_for: names of files, with ``*`` for anything; a folder with one of them is taken for
            this layout.
        files: what lies in its folders, in lines, for people.
    """

    splits: ClassVar[tuple[str, ...]]
    train_split: ClassVar[str] = "train"
    looks_for: ClassVar[tuple[str, ...]] = ()
    files: ClassVar[str] = ""

    @abstractmethod
    def read(self, annotation_dir: Path, split: str) -> Annotations:
        """Read the annotations of a split.

        Sentences that describe a video together are joined to one caption here, and ids listed
        apart from their captions are matched with them.

        Args:
            annotation_dir: folder of the annotation files.
            split: one of ``splits``.

        Raises:
            FileNotFoundError: an annotation file does not exist.
            AnnotationError: an annotation file is not as it should be.
        """

    def recognizes(self, annotation_dir: Path) -> bool:
        """Whether a folder looks like this layout's."""
        return any(True for name in self.looks_for for _ in annotation_dir.glob(name))

    def annotations(self, annotation_dir: str | os.PathLike[str], split: str) -> Annotations:
        """Read the annotations of a split, and check what no layout may get wrong.

        Raises:
            FileNotFoundError, AnnotationError: as :meth:`read`; no caption, or one that is no text.
            ValueError: a split that the layout does not have.
        """
        if split not in self.splits:
            raise ValueError(f"split must be one of {list(self.splits)}, got {split!r}")
        found = self.read(Path(annotation_dir), split)
        if not found.captions:
            raise AnnotationError(f"split {split!r} has no caption in {annotation_dir}")
        for caption in found.captions:
            where = f"split {split!r} in {annotation_dir}, a caption of {caption.video_id!r}"
            check_is_text(where, caption.video_id + caption.text)
            if not caption.video_id.strip() or not caption.text.strip():
                raise AnnotationError(f"{where}: {caption.text!r}; neither may be empty")
        return found

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
        everything = self.captions_and_files(annotation_dir, video_dir, split)
        video_ids = list(dict.fromkeys(caption.video_id for caption in everything.captions))
        absent = [video_id for video_id in video_ids if video_id not in everything.videos]
        if absent and missing == "error":
            raise FileNotFoundError(
                f"{len(absent)} of {len(video_ids)} videos of split {split!r} have no file in "
                f"{video_dir}: {shortened(absent)}"
            )
        present = everything.without(absent)
        if absent:
            log_skipped(everything, present, f"have no file in {video_dir}")
        if not present.videos:
            raise AnnotationError(f"no video of split {split!r} has a file in {video_dir}")
        return present

    def captions_and_files(
        self, annotation_dir: str | os.PathLike[str], video_dir: str | os.PathLike[str], split: str
    ) -> RetrievalSplit:
        """Read all captions of a split, and find the files of those videos that have one.

        What looks wrong is logged.

        Returns:
            A split whose ``videos`` lack those without a file, unlike any other's.

        Raises:
            FileNotFoundError, AnnotationError, ValueError: as :meth:`load`, save for videos
                without a file.
        """
        found = self.annotations(annotation_dir, split)
        for note in (*found.notes, repeated_captions(found.captions)):
            if note is not None:
                _log.warning("split %r: %s", split, note)
        if (note := shared_captions(found.captions)) is not None:
            _log.info("split %r: %s", split, note)
        return RetrievalSplit(
            tuple(found.captions),
            self.find_files(found, video_dir),
            {video_id: clip.time_range for video_id, clip in found.clips.items()},
        )

    def find_files(
        self, annotations: Annotations, video_dir: str | os.PathLike[str]
    ) -> dict[str, Path]:
        """Find the files of those videos and clips that have one, also in sub-folders.

        Returns:
            video id -> file, in the order of the captions.

        Raises:
            FileNotFoundError: there is no such folder.
            AnnotationError: it cannot be told which file is a video's.
        """
        # Clips of a video share its file.
        owners = {
            video_id: clip.video if (clip := annotations.clips.get(video_id)) else video_id
            for video_id in annotations.video_ids
        }
        names = {owner: annotations.names.get(owner, (owner,)) for owner in owners.values()}
        files = find_named_videos(video_dir, names)
        return {video_id: files[owner] for video_id, owner in owners.items() if owner in files}
