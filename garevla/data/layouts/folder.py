"""Videos of one's own: a folder of them, with a table of captions or a text beside each."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from garevla.data.annotation_files import (
    check_number,
    check_text,
    check_texts,
    note_absent,
    read_csv,
    read_json,
    read_lines,
    unique_keys,
)
from garevla.data.frame_sampling import TimeRange
from garevla.data.layouts import register_layout
from garevla.data.layouts.base import Layout
from garevla.data.messages import brief
from garevla.data.splits import AnnotationError, Annotations, Caption, Clip
from garevla.data.video_files import VIDEO_SUFFIXES, files_below

_SPLITS = ("train", "val", "test")
_SUFFIXES = (".csv", ".tsv", ".json", ".jsonl")
_TABLE = "captions"
_FIELDS = ("start", "end", "split")


class Folder(Layout):
    """Videos with ``captions.csv``, or with a text file beside each of them.

    ``captions.csv``, ``.tsv``, ``.json`` or ``.jsonl`` has ``video`` and ``caption`` in each row;
    ``start`` and ``end``, in seconds, where the caption is of a part of the video; and ``split``,
    which is train, val or test. Instead there may be a file for each split, such as ``train.csv``
    and ``test.csv``. ``video`` is the name of a file, with or without its suffix, or its path in
    the video folder. JSON files are a list of such objects, in which ``caption`` may be a list, or
    one object of videos, each with its caption or captions; JSONL files have an object a line.

    A text file beside a video, ``a.txt`` for ``a.mp4``, has a caption a line; folders called
    ``train``, ``val`` and ``test`` are the splits then.

    Where nothing tells splits apart every caption is in all of them, which is noted: fit for
    evaluating a model, not for training one.
    """

    splits = _SPLITS
    looks_for = (
        "captions.csv",
        "test.csv",
        "(either also .tsv, .json, .jsonl)",
        "a.txt beside a.mp4",
    )
    files = """\
annotations/captions.csv  video,caption,split (and start,end); or .tsv, .json, .jsonl
videos/skateboard.mp4
or
videos/train/skateboard.mp4
videos/train/skateboard.txt  a caption a line; --annotation_dir is the video folder then"""

    def recognizes(self, annotation_dir: Path) -> bool:
        """As :meth:`Layout.recognizes`."""
        if any(
            (annotation_dir / f"{stem}{s}").is_file()
            for stem in (_TABLE, "test")
            for s in _SUFFIXES
        ):
            return True
        return any(
            _is_video(path) and _beside(path).is_file() for path in files_below(annotation_dir)
        )

    def read(self, annotation_dir: Path, split: str) -> Annotations:
        """As :meth:`Layout.read`."""
        notes: list[str] = []
        path = _table(annotation_dir, split) or _table(annotation_dir, _TABLE)
        if path is not None:
            rows = list(_read_rows(path))
            if path.stem == _TABLE:
                rows = _rows_of(rows, path, split, notes)
            return _annotations(rows, notes)
        if any(_table(annotation_dir, each) for each in _SPLITS):
            raise FileNotFoundError(
                f"annotation file {annotation_dir / split}.csv does not exist, nor with another of "
                f"{', '.join(_SUFFIXES)}"
            )
        return _read_texts(annotation_dir, split, notes)


class Row(NamedTuple):
    """A caption, the video or clip that it is of, and its split where one is named."""

    where: str
    video: str
    caption: str
    time_range: TimeRange | None
    split: str


def _table(folder: Path, stem: str) -> Path | None:
    """The table of this name, if there is one."""
    found = [path for suffix in _SUFFIXES if (path := folder / f"{stem}{suffix}").is_file()]
    if len(found) > 1:
        raise AnnotationError(f"which of {' and '.join(map(str, found))} is to be read?")
    return found[0] if found else None


def _read_rows(path: Path) -> Iterator[Row]:
    if path.suffix in (".csv", ".tsv"):
        separator = "," if path.suffix == ".csv" else "\t"
        rows = read_csv(path, ("video", "caption"), _FIELDS, separator=separator)
        # Rows may take several lines: they are counted, not lines.
        records = [(f"{path}, row {number}", row) for number, row in enumerate(rows, 1)]
    elif path.suffix == ".jsonl":
        records = [
            (f"{path}, line {number}", _parsed(path, number, line))
            for number, line in read_lines(path)
        ]
    else:
        content = read_json(path, unique_keys)
        if isinstance(content, dict):
            content = [{"video": video, "caption": text} for video, text in content.items()]
        if not isinstance(content, list):
            raise AnnotationError(f"{path} must be a list of objects, got {brief(content)}")
        records = [(f"{path}[{index}]", each) for index, each in enumerate(content)]
    for where, each in records:
        yield from _rows(where, each)


def _parsed(path: Path, number: int, line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise AnnotationError(f"{path}, line {number}: not valid JSON: {error}") from None


def _rows(where: str, value: Any) -> Iterator[Row]:
    """The rows of an object, one for each of its captions."""
    if not isinstance(value, dict) or not {"video", "caption"} <= value.keys():
        raise AnnotationError(f"{where}: needs 'video' and 'caption', got {brief(value)}")
    video = check_text(f"{where}, video", value["video"])
    caption, split = value["caption"], value.get("split") or ""
    if split and split not in _SPLITS:
        raise AnnotationError(f"{where}: split must be one of {list(_SPLITS)}, got {brief(split)}")
    is_list = isinstance(caption, list)
    texts = (
        check_texts(f"{where}, caption", caption)
        if is_list
        else [check_text(f"{where}, caption", caption)]
    )
    time_range = _time_range(where, value.get("start"), value.get("end"))
    for text in texts:
        yield Row(where, video, text, time_range, split)


def _time_range(where: str, start: Any, end: Any) -> TimeRange | None:
    given = [each for each in (start, end) if each not in (None, "")]
    if not given:
        return None
    if len(given) == 1:
        raise AnnotationError(f"{where}: start and end go together, got {start!r} and {end!r}")
    time_range = TimeRange(
        check_number(f"{where}, start", start), check_number(f"{where}, end", end)
    )
    try:
        time_range.check()
    except ValueError as error:
        raise AnnotationError(f"{where}: {error}") from None
    return time_range


def _rows_of(rows: list[Row], path: Path, split: str, notes: list[str]) -> list[Row]:
    """Those of a split; all where no row names one."""
    if not any(row.split for row in rows):
        notes.append(f"{path} names no splits: all of it is {split}")
        return rows
    for row in rows:
        if not row.split:
            raise AnnotationError(f"{row.where}: no split, which other rows have")
    return [row for row in rows if row.split == split]


def _annotations(rows: list[Row], notes: list[str]) -> Annotations:
    captions, clips = [], {}
    for row in rows:
        video_id = row.video
        if row.time_range is not None:
            clip = Clip(row.video, row.time_range)
            video_id = clip.video_id
            clips[video_id] = clip
        captions.append(Caption(video_id, row.caption))
    return Annotations(captions, notes, clips)


def _read_texts(folder: Path, split: str, notes: list[str]) -> Annotations:
    """The captions beside videos, whose ids are their paths without suffix."""
    texts: dict[str, list[str]] = {}
    for path in files_below(folder):
        if _is_video(path):
            video_id = path.relative_to(folder).with_suffix("").as_posix()
            text = _beside(path)
            lines = read_lines(text) if text.is_file() else []
            texts[video_id] = [line for _, line in lines]
    if not texts:
        raise FileNotFoundError(
            f"{folder} has neither {split}.csv nor {_TABLE}.csv (or {', '.join(_SUFFIXES[1:])}), "
            "nor videos with text files beside them"
        )
    if any(video_id.startswith(f"{each}/") for video_id in texts for each in _SPLITS):
        texts = {i: lines for i, lines in texts.items() if i.startswith(f"{split}/")}
    else:
        notes.append(f"{folder} has no folders train, val and test: all of it is {split}")
    spoken = {video_id: lines for video_id, lines in texts.items() if lines}
    note_absent(texts, spoken, "have no caption in a text file beside them", notes)
    return Annotations([Caption(i, line) for i, lines in spoken.items() for line in lines], notes)


def _is_video(path: Path) -> bool:
    return path.suffix.lower() in VIDEO_SUFFIXES and path.name[0] != "."


def _beside(path: Path) -> Path:
    return path.with_suffix(".txt")


register_layout("folder", Folder())
