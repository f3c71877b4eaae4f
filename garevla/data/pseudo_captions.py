"""Pseudo captions: for each sampled frame of a video, a sentence that says what it shows."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any, Literal

from garevla.data.annotation_files import check_is_text, read_json, unique_keys
from garevla.data.messages import brief, check_error_or_skip, shortened
from garevla.data.splits import AnnotationError, Caption, RetrievalSplit

_log = logging.getLogger(__name__)


class PseudoCaptionError(ValueError):
    """A pseudo-caption file that is not as it should be, or that lacks captions."""


class PseudoCaptions:
    """The pseudo captions of a file, from :meth:`load`.

    Attributes:
        path: the file.
    """

    def __init__(self, path: Path, captions: dict[str, tuple[str, ...]]) -> None:
        self.path = path
        self._captions = captions

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> PseudoCaptions:
        """Load a JSON file: an object of lists of strings, a string for each sampled frame.

        A key is ``video_id + "_" + caption``, as DiscoVLA publishes them, or a ``video_id`` alone,
        for all captions of that video. Lists may differ in length: a short video has fewer frames.

        Raises:
            FileNotFoundError: there is no such file.
            PseudoCaptionError: not JSON in UTF-8, not an object, a key twice, or a value that is
                not a list of strings with at least one.
        """
        path = Path(path)
        captions: dict[str, tuple[str, ...]] = {}
        # A video's captions often share one set; each data-loading process holds all of them.
        shared: dict[tuple[str, ...], tuple[str, ...]] = {}
        for key, value in _read_object(path).items():
            if not _is_list_of_strings(value):
                raise PseudoCaptionError(
                    f"{path}, key {key!r}: must be a list of strings, one per frame, got "
                    f"{brief(value)}"
                )
            captions[key] = shared.setdefault(tuple(value), tuple(value))
        for texts in shared:
            for text in texts:
                check_is_text(f"{path}, {text!r}", text, PseudoCaptionError)
        # Captions are read without white space at their ends, which keys may have kept.
        for key in list(captions):
            captions.setdefault(key.strip(), captions[key])
        num_empty = sum(not text.strip() for texts in shared for text in texts)
        if num_empty:
            _log.warning("%s: %d pseudo captions are empty", path, num_empty)
        return cls(path, captions)

    def find(self, caption: Caption) -> tuple[str, ...] | None:
        """Return what the frames of a caption's video show, or None where that is not known.

        Captions given for this very caption come before those given for its video.
        """
        for_caption = self._captions.get(f"{caption.video_id}_{caption.text}")
        return for_caption if for_caption is not None else self._captions.get(caption.video_id)

    def cover(
        self, split: RetrievalSplit, *, missing: Literal["error", "skip"] = "error"
    ) -> RetrievalSplit:
        """Return the part of a split that has pseudo captions, or make sure that all of it has.

        Args:
            split: captions and videos.
            missing: what to do about captions without pseudo captions: ``"error"``, or ``"skip"``
                them, and the videos left without any caption, and log how many.

        Raises:
            PseudoCaptionError: captions without pseudo captions that are not to be skipped, or no
                caption with them.
        """
        check_error_or_skip("missing", missing)
        absent = [caption for caption in split.captions if self.find(caption) is None]
        if not absent:
            return split
        num_videos = len({caption.video_id for caption in split.captions})
        if missing == "error" or len(absent) == len(split.captions):
            names = shortened(f"{caption.video_id}: {caption.text!r}" for caption in absent)
            raise PseudoCaptionError(
                f"{self.path} has no pseudo captions for {len(absent)} of {len(split.captions)} "
                f"captions, of {len({caption.video_id for caption in absent})} of {num_videos} "
                f"videos: {names}"
            )
        covered = tuple(caption for caption in split.captions if self.find(caption) is not None)
        kept = {caption.video_id for caption in covered}
        _log.warning(
            "skipped %d of %d captions, which have no pseudo captions in %s, and with them %d of "
            "%d videos",
            len(absent),
            len(split.captions),
            self.path,
            num_videos - len(kept),
            num_videos,
        )
        videos = {i: path for i, path in split.videos.items() if i in kept}
        return RetrievalSplit(covered, videos, split.time_ranges)


def _read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object that is not empty, and has no key twice."""
    if not path.is_file():
        raise FileNotFoundError(f"pseudo-caption file {path} does not exist")
    try:
        content = read_json(path, unique_keys)
    except AnnotationError as error:
        raise PseudoCaptionError(str(error)) from error
    if not isinstance(content, dict) or not content:
        kind = "an empty object" if content == {} else f"a {type(content).__name__}"
        raise PseudoCaptionError(f"{path} must be an object of lists of strings, got {kind}")
    return content


def _is_list_of_strings(value: object) -> bool:
    return (
        isinstance(value, list) and len(value) > 0 and all(isinstance(text, str) for text in value)
    )
