"""The MSR-VTT layout: annotation files, and videos named by their id."""

from __future__ import annotations

import csv
import json
import logging
import os
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from garevla.data.video import VIDEO_SUFFIXES

Split = Literal["train-9k", "train-7k", "test"]

TRAIN_FILES = {"train-9k": "MSRVTT_train.9k.csv", "train-7k": "MSRVTT_train.7k.csv"}
TEST_FILE = "MSRVTT_JSFUSION_test.csv"
CAPTION_FILE = "MSRVTT_data.json"

# Longer lists help nobody; the number is always given.
_NAMES_IN_AN_ERROR = 20

_log = logging.getLogger(__name__)


class AnnotationError(ValueError):
    """An annotation file, or the collection of videos, that is not as it should be."""


@dataclass(frozen=True)
class Caption:
    """A caption and the video it belongs to."""

    video_id: str
    text: str


@dataclass(frozen=True)
class RetrievalSplit:
    """Captions and videos of a split.

    Attributes:
        captions: any number of them per video, at least 1.
        videos: video id -> file, in the order of the annotation file.
    """

    captions: tuple[Caption, ...]
    videos: dict[str, Path]

    def without(self, video_ids: Collection[str]) -> RetrievalSplit:
        """Return the split without some videos and their captions."""
        dropped = set(video_ids)
        return RetrievalSplit(
            tuple(caption for caption in self.captions if caption.video_id not in dropped),
            {video_id: path for video_id, path in self.videos.items() if video_id not in dropped},
        )


def load_msrvtt(
    annotation_dir: str | os.PathLike[str],
    video_dir: str | os.PathLike[str],
    split: Split,
    *,
    missing: Literal["error", "skip"] = "error",
) -> RetrievalSplit:
    """Load a split of MSR-VTT, or of any data set in its layout.

    Args:
        annotation_dir: folder of ``MSRVTT_data.json`` and ``MSRVTT_train.9k.csv`` or
            ``MSRVTT_train.7k.csv`` (column ``video_id``), or of ``MSRVTT_JSFUSION_test.csv``
            (columns ``video_id`` and ``sentence``; several rows per video are several captions).
        video_dir: folder of ``<video_id>.mp4``, also in sub-folders. Other containers
            (``garevla.data.video.VIDEO_SUFFIXES``) are taken where there is no mp4.
        split: which videos.
        missing: what to do about videos without a file: ``"error"``, or ``"skip"`` them and log
            how many. Files are not opened; :func:`garevla.data.load_split` does.

    Raises:
        FileNotFoundError: a folder, an annotation file, or (``missing="error"``) videos that do
            not exist.
        AnnotationError: an annotation file without the column, key or content that is needed,
            videos without captions, two files of the same name, or nothing left.
    """
    captions = read_captions(annotation_dir, split)
    video_ids = list(dict.fromkeys(caption.video_id for caption in captions))
    files = find_videos(video_dir, video_ids)
    absent = [video_id for video_id in video_ids if video_id not in files]
    if absent and missing == "error":
        raise FileNotFoundError(
            f"{len(absent)} of {len(video_ids)} videos of split {split!r} have no file in "
            f"{video_dir}: {shortened(absent)}"
        )
    everything = RetrievalSplit(captions, files)
    loaded = everything.without(absent)
    if absent:
        log_skipped(everything, loaded, f"have no file in {video_dir}")
    if not loaded.videos:
        raise AnnotationError(f"no video of split {split!r} has a file in {video_dir}")
    return loaded


def read_captions(annotation_dir: str | os.PathLike[str], split: Split) -> tuple[Caption, ...]:
    """Read the captions of a split, in the order of its annotation file.

    Raises:
        FileNotFoundError, AnnotationError: as :func:`load_msrvtt`.
    """
    folder = Path(annotation_dir)
    if split == "test":
        path = folder / TEST_FILE
        rows = _read_csv(path, ("video_id", "sentence"))
        captions = [Caption(row["video_id"], row["sentence"]) for row in rows]
    elif split in TRAIN_FILES:
        path = folder / TRAIN_FILES[split]
        rows = _read_csv(path, ("video_id",))
        texts: dict[str, list[str]] = {row["video_id"]: [] for row in rows}
        for video_id, text in _read_sentences(folder / CAPTION_FILE):
            if video_id in texts:
                if not text:
                    raise AnnotationError(f"{CAPTION_FILE}: empty caption of {video_id!r}")
                texts[video_id].append(text)
        silent = [video_id for video_id, found in texts.items() if not found]
        if silent:
            raise AnnotationError(
                f"{len(silent)} videos of {path} have no caption in {CAPTION_FILE}: "
                f"{shortened(silent)}"
            )
        captions = [Caption(video_id, text) for video_id in texts for text in texts[video_id]]
    else:
        raise ValueError(f"split must be one of {[*TRAIN_FILES, 'test']}, got {split!r}")
    if not captions:
        raise AnnotationError(f"{path} names no video")
    return tuple(captions)


def find_videos(
    video_dir: str | os.PathLike[str], video_ids: Iterable[str] | None = None
) -> dict[str, Path]:
    """Find the files of videos in a folder and its sub-folders, walking through them once.

    Args:
        video_dir: the folder.
        video_ids: which videos; ``None`` means all whose names do not begin with a dot.

    Returns:
        video id -> file, in the order of ``video_ids`` or sorted; ids without a file are left out.

    Raises:
        FileNotFoundError: there is no such folder.
        AnnotationError: two files of the same kind for one id.
    """
    root = Path(video_dir)
    if not root.is_dir():
        raise FileNotFoundError(f"video folder {root} does not exist or is not a folder")
    wanted = None if video_ids is None else dict.fromkeys(video_ids)
    found: dict[str, dict[str, Path]] = {}
    seen_folders: set[str] = set()
    # Data sets are often put together from links to folders; a link back up would never end.
    for folder, sub_folders, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen_folders:
            sub_folders.clear()
            continue
        seen_folders.add(real)
        sub_folders.sort()
        for name in sorted(names):
            video_id, suffix = os.path.splitext(name)
            is_wanted = video_id in wanted if wanted is not None else not name.startswith(".")
            if not is_wanted or suffix.lower() not in VIDEO_SUFFIXES:
                continue
            path = Path(folder, name)
            other = found.setdefault(video_id, {}).setdefault(suffix.lower(), path)
            if other != path:
                raise AnnotationError(f"two files for video {video_id!r}: {other} and {path}")
    preference = VIDEO_SUFFIXES.index
    return {
        video_id: found[video_id][min(found[video_id], key=preference)]
        for video_id in (sorted(found) if wanted is None else wanted)
        if video_id in found
    }


def shortened(names: Iterable[object], separator: str = ", ") -> str:
    """Join the first names of a list, saying how many more there are."""
    names = [str(name) for name in names]
    more = len(names) - _NAMES_IN_AN_ERROR
    return separator.join(
        names[:_NAMES_IN_AN_ERROR] + ([f"... and {more} more"] if more > 0 else [])
    )


def log_skipped(before: RetrievalSplit, after: RetrievalSplit, why: str) -> None:
    """Log how many videos and captions a split has lost."""
    before_ids, after_ids = ({c.video_id for c in split.captions} for split in (before, after))
    _log.warning(
        "skipped %d of %d videos, which %s, and with them %d of %d captions",
        len(before_ids) - len(after_ids),
        len(before_ids),
        why,
        len(before.captions) - len(after.captions),
        len(before.captions),
    )


def _read_csv(path: Path, columns: tuple[str, ...]) -> list[dict[str, str]]:
    if not path.is_file():
        raise FileNotFoundError(f"annotation file {path} does not exist")
    rows = []
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        absent = [column for column in columns if column not in (reader.fieldnames or ())]
        if absent:
            raise AnnotationError(
                f"{path} has no column {absent[0]!r}; it has {list(reader.fieldnames or ())}"
            )
        for row in reader:
            if row.get(None) is not None:
                raise AnnotationError(
                    f"{path}, line {reader.line_num}: more fields than columns; a sentence with "
                    "commas needs quotes"
                )
            values = {column: (row[column] or "").strip() for column in columns}
            for column, value in values.items():
                if not value:
                    raise AnnotationError(f"{path}, line {reader.line_num}: no {column}")
            rows.append(values)
    return rows


def _read_sentences(path: Path) -> Iterable[tuple[str, str]]:
    if not path.is_file():
        raise FileNotFoundError(f"annotation file {path} does not exist")
    try:
        with path.open(encoding="utf-8-sig") as file:
            data = json.load(file)
    except ValueError as error:
        raise AnnotationError(f"{path} is not valid JSON: {error}") from error
    sentences = data.get("sentences") if isinstance(data, dict) else None
    if not isinstance(sentences, list):
        raise AnnotationError(f"{path} must be an object with a list 'sentences'")
    for index, sentence in enumerate(sentences):
        try:
            video_id, text = sentence["video_id"], sentence["caption"].strip()
        except (TypeError, KeyError, AttributeError) as error:
            raise AnnotationError(
                f"{path}, sentences[{index}]: needs strings 'video_id' and 'caption', "
                f"got {sentence!r}"
            ) from error
        yield video_id, text
