"""DiDeMo: sentences about moments of videos, joined to a paragraph a video."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from garevla.data.annotation_files import (
    check_objects,
    check_text,
    note_absent,
    read_csv,
    read_json,
    read_list,
    unique_ids,
)
from garevla.data.frame_sampling import TimeRange
from garevla.data.layouts import register_layout
from garevla.data.layouts.base import Layout
from garevla.data.messages import brief, shortened
from garevla.data.splits import AnnotationError, Annotations, Caption, Clip
from garevla.data.video_files import VIDEO_SUFFIXES

# Moments are whole numbers of these, in seconds.
_SEGMENT = 5.0
_SENTENCES = "-sentences"


class Sentence(NamedTuple):
    """A sentence and the moment that it is about."""

    video: str
    text: str
    time_range: TimeRange


class DiDeMo(Layout):
    """The official files, and the paragraphs that are used for retrieval.

    ``train_data.json``, ``val_data.json`` and ``test_data.json`` are lists of objects with
    ``video``, ``description`` and ``times``, the moment as each annotator saw it: first and last
    segment of five seconds. A split of paragraphs has one caption a video, all its sentences;
    ``test-sentences`` and the like have each sentence with the moment that most annotators agree
    on, the first of several.

    ``test_list.txt``, an id a line, or ``didemo_test_label.csv`` (columns ``video_path`` and
    ``text``, a paragraph) says which videos of the split are used, likewise of the other splits;
    without both all are. Ids keep the extension of the file, which may end in a bare dot; files may
    have another extension, or the id and one more.
    """

    splits = ("train", "val", "test", *(f"{each}{_SENTENCES}" for each in ("train", "val", "test")))
    looks_for = ("train_data.json", "val_data.json", "test_data.json", "didemo_*_label.csv")
    files = """\
annotations/train_data.json        sentences and moments; also val_data.json and test_data.json
annotations/didemo_test_label.csv  paragraphs of those used for retrieval; or test_list.txt
videos/12345678@N00_1234567890_0123456789.mov"""

    def read(self, annotation_dir: Path, split: str) -> Annotations:
        """As :meth:`Layout.read`."""
        name = split.removesuffix(_SENTENCES)
        data_file = annotation_dir / f"{name}_data.json"
        list_file = annotation_dir / f"{name}_list.txt"
        paragraph_file = annotation_dir / f"didemo_{name}_label.csv"
        notes: list[str] = []
        paragraphs = _read_paragraphs(paragraph_file, notes) if paragraph_file.exists() else None
        if paragraphs is not None and split == name and not data_file.exists():
            return _annotations([Caption(*each) for each in paragraphs.items()], notes)
        sentences = _read_sentences(data_file)
        described = dict.fromkeys(each.video for each in sentences)
        used: dict[str, str] = {video: video for video in described}
        if paragraphs is not None:
            used = _matched(paragraphs, described, f"of {paragraph_file}", data_file, notes)
            _note_unused(described, used, paragraph_file, notes)
        elif list_file.exists():
            listed = read_list(list_file, notes)
            used = _matched(listed, described, f"of {list_file}", data_file, notes)
            _note_unused(described, used, list_file, notes)
        else:
            notes.append(
                f"neither {list_file.name} nor {paragraph_file.name} is there, which say what is "
                f"used for retrieval: all {len(described)} videos of {data_file.name} are"
            )
        if split == name and paragraphs is not None:
            return _annotations([Caption(*each) for each in paragraphs.items()], notes)
        texts: dict[str, list[str]] = {video: [] for video in used}
        for sentence in sentences:
            if sentence.video in texts:
                texts[sentence.video].append(sentence.text)
        if split == name:
            return _annotations([Caption(i, " ".join(each)) for i, each in texts.items()], notes)
        clips = [
            (Clip(each.video, each.time_range), each.text)
            for each in sentences
            if each.video in texts
        ]
        return _annotations(
            [Caption(clip.video_id, text) for clip, text in clips],
            notes,
            {clip.video_id: clip for clip, _ in clips},
        )


def _read_paragraphs(path: Path, notes: list[str]) -> dict[str, str]:
    rows = read_csv(path, ("video_path", "text"), ("success",))
    failed = [row["video_path"] for row in rows if row["success"].lower() == "false"]
    if failed:
        notes.append(f"{len(failed)} rows of {path} are marked as failed: {shortened(failed)}")
    paragraphs = {}
    good = [row for row in rows if row["success"].lower() != "false"]
    for row in good:
        name = PurePosixPath(row["video_path"]).name
        if not name:
            raise AnnotationError(f"{path}: no file in video_path {brief(row['video_path'])}")
        paragraphs[name] = row["text"]
    unique_ids(path, (PurePosixPath(row["video_path"]).name for row in good), notes)
    return paragraphs


def _read_sentences(path: Path) -> list[Sentence]:
    sentences = []
    content = check_objects(str(path), read_json(path), "video", "description")
    for index, each in enumerate(content):
        where = f"{path}[{index}]"
        text = check_text(f"{where}, description", each["description"])
        video = check_text(f"{where}, video", each["video"])
        sentences.append(Sentence(video, text, _moment(where, each.get("times"))))
    return sentences


def _moment(where: str, times: Any) -> TimeRange:
    """The moment that most annotators agree on, the first of several."""
    if not isinstance(times, list) or not times or not all(map(_is_pair, times)):
        raise AnnotationError(
            f"{where}, times: must be pairs of a first and a last segment, got {brief(times)}"
        )
    (first, last), _ = Counter(map(tuple, times)).most_common(1)[0]
    return TimeRange(_SEGMENT * first, _SEGMENT * (last + 1))


def _is_pair(value: Any) -> bool:
    # No video is so long; larger numbers would not fit a float.
    return (
        isinstance(value, list)
        and len(value) == 2
        and all(type(each) is int for each in value)
        and 0 <= value[0] <= value[1] < 10_000
    )


def _matched(
    ids: Iterable[str], described: Iterable[str], what: str, data_file: Path, notes: list[str]
) -> dict[str, str]:
    """The described videos that are listed, by whole name or without extension, in order.

    Returns:
        video -> the name under which it is listed.
    """
    by_stem: dict[str, list[str]] = {}
    whole = set(described)
    for video in whole:
        by_stem.setdefault(_stem(video), []).append(video)
    listed = list(ids)
    found: dict[str, str] = {}
    for each in listed:
        same = [each] if each in whole else by_stem.get(_stem(each), [])
        if len(same) == 1:
            found.setdefault(same[0], each)
    note_absent(listed, dict.fromkeys(found.values()), f"{what} are not in {data_file}", notes)
    return found


def _note_unused(
    described: Iterable[str], used: dict[str, str], path: Path, notes: list[str]
) -> None:
    note_absent(described, used, f"are not in {path} and left out", notes)


def _stem(video_id: str) -> str:
    """An id without its extension, also a bare dot."""
    stem, dot, extension = video_id.rpartition(".")
    return (
        stem if dot and (not extension or f".{extension.lower()}" in VIDEO_SUFFIXES) else video_id
    )


def _annotations(
    captions: list[Caption], notes: list[str], clips: dict[str, Clip] | None = None
) -> Annotations:
    clips = clips or {}
    videos = {clips[c.video_id].video if c.video_id in clips else c.video_id for c in captions}
    names = {video: tuple(dict.fromkeys((video, _stem(video)))) for video in videos}
    return Annotations(captions, notes, clips, names)


register_layout("didemo", DiDeMo())
