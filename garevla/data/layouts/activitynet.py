"""ActivityNet Captions: sentences about segments of videos, joined to a paragraph a video."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from garevla.data.annotation_files import (
    check_number,
    check_text,
    check_texts,
    note_absent,
    read_json,
    unique_ids,
    unique_keys,
)
from garevla.data.frame_sampling import TimeRange
from garevla.data.layouts import register_layout
from garevla.data.layouts.base import Layout
from garevla.data.messages import brief, shortened
from garevla.data.splits import AnnotationError, Annotations, Caption, Clip

# Of each split its captions, and the list of its ids.
FILES = {
    "train": ("train.json", "train_ids.json"),
    "test": ("val_1.json", "val_ids.json"),
    "val-2": ("val_2.json", "val_ids.json"),
}
PATH_FILE = "video_path.json"
_PREFIX = "v_"
_SENTENCES = "-sentences"
# Times and durations are rounded to hundredths of a second.
_ROUNDING = 0.01


class Video(NamedTuple):
    """What is said of a video."""

    duration: float
    segments: list[tuple[float, float]]
    sentences: list[str]


class ActivityNet(Layout):
    """The files of ActivityNet Captions that published code reads.

    ``train.json``, ``val_1.json`` (the test split of retrieval) and ``val_2.json`` are objects of
    video ids, each with ``duration``, ``timestamps`` and ``sentences``. A split of paragraphs has
    one caption a video, all its sentences; ``test-sentences`` and the like have each sentence with
    its segment of the video.

    ``train_ids.json`` and ``val_ids.json``, lists of ids, may name videos without captions, which
    are left out and noted. ``video_path.json`` is an object of ids and the names of their files.
    Everywhere ids may have ``v_`` before them or not.
    """

    splits = (*FILES, *(f"{each}{_SENTENCES}" for each in FILES))
    looks_for = ("val_1.json", "val_2.json", "train_ids.json")
    files = """\
annotations/train.json       duration, timestamps, sentences; also val_1.json, the test split
annotations/train_ids.json   ids, where there are some without captions; also val_ids.json
annotations/video_path.json  names of files, where they are not the ids
videos/v_abcdefghijk.mp4"""

    def read(self, annotation_dir: Path, split: str) -> Annotations:
        """As :meth:`Layout.read`."""
        caption_file, id_file = (
            annotation_dir / name for name in FILES[split.removesuffix(_SENTENCES)]
        )
        notes: list[str] = []
        videos = _read_videos(caption_file)
        if id_file.exists():
            content = read_json(id_file)
            where = f"{id_file} must be a list of ids"
            if not isinstance(content, list) or not all(isinstance(each, str) for each in content):
                raise AnnotationError(f"{where}, got {brief(content)}")
            ids = unique_ids(id_file, content, notes)
            spoken = dict.fromkeys(each for each in ids if _find(each, videos) is not None)
            what = f"of {id_file} have no caption in {caption_file} and are left out"
            note_absent(ids, spoken, what, notes)
        _note_times(videos, notes)
        names = _names(annotation_dir / PATH_FILE, videos, notes)
        if not split.endswith(_SENTENCES):
            captions = [Caption(i, " ".join(each.sentences)) for i, each in videos.items()]
            return Annotations(captions, notes, names=names)
        return _sentences(videos, names, notes)


def _read_videos(path: Path) -> dict[str, Video]:
    content = read_json(path, unique_keys)
    if not isinstance(content, dict):
        raise AnnotationError(f"{path} must be an object of videos, got {brief(content)}")
    return {
        check_text(f"{path}, a video id", video_id): _video(f"{path}, {video_id!r}", value)
        for video_id, value in content.items()
    }


def _video(where: str, value: Any) -> Video:
    fields = value if isinstance(value, dict) else {}
    if not {"duration", "timestamps", "sentences"} <= fields.keys():
        raise AnnotationError(
            f"{where}: needs 'duration', 'timestamps' and 'sentences', got {brief(value)}"
        )
    sentences = check_texts(f"{where}, sentences", fields["sentences"])
    times = fields["timestamps"]
    if not sentences or not isinstance(times, list) or len(times) != len(sentences):
        raise AnnotationError(
            f"{where}: must have a pair of times for every sentence, and at least one, got "
            f"{brief(times)} for {len(sentences)} sentences"
        )
    segments = []
    for index, pair in enumerate(times):
        if not isinstance(pair, list) or len(pair) != 2:
            raise AnnotationError(f"{where}, timestamps[{index}]: no pair, got {brief(pair)}")
        start, end = (check_number(f"{where}, timestamps[{index}]", each) for each in pair)
        segments.append((start, end))
    return Video(check_number(f"{where}, duration", fields["duration"]), segments, sentences)


def _note_times(videos: dict[str, Video], notes: list[str]) -> None:
    beyond = [
        video_id
        for video_id, each in videos.items()
        if any(end > each.duration + _ROUNDING for _, end in each.segments)
    ]
    if beyond:
        notes.append(f"{len(beyond)} videos have times beyond their duration: {shortened(beyond)}")
    for what, is_wrong in (
        ("that end before they start", operator.gt),
        ("of no length", operator.eq),
    ):
        wrong = [i for i, each in videos.items() if any(is_wrong(*pair) for pair in each.segments)]
        if wrong:
            notes.append(f"{len(wrong)} videos have segments {what}: {shortened(wrong)}")


def _names(
    path_file: Path, videos: dict[str, Video], notes: list[str]
) -> dict[str, tuple[str, ...]]:
    """The names that a video's file may have."""
    paths: dict[str, str] = {}
    if path_file.exists():
        content = read_json(path_file, unique_keys)
        if not isinstance(content, dict) or not all(
            isinstance(each, str) for each in content.values()
        ):
            raise AnnotationError(f"{path_file} must be an object of names, got {brief(content)}")
        found = {video_id: _find(video_id, content) for video_id in videos}
        paths = {video_id: content[key] for video_id, key in found.items() if key is not None}
        note_absent(videos, paths, f"are not in {path_file} and looked for by id", notes)
    return {
        video_id: (*([paths[video_id]] if video_id in paths else []), *_spellings(video_id))
        for video_id in videos
    }


def _spellings(video_id: str) -> tuple[str, ...]:
    """An id as it is, and with or without the prefix, with which ids may begin by themselves."""
    others = [_PREFIX + video_id]
    if video_id.startswith(_PREFIX):
        others.insert(0, video_id.removeprefix(_PREFIX))
    return (video_id, *others)


def _find(video_id: str, content: Mapping[str, Any]) -> str | None:
    """The key under which something about a video is found."""
    return next((each for each in _spellings(video_id) if each in content), None)


def _sentences(
    videos: dict[str, Video], names: dict[str, tuple[str, ...]], notes: list[str]
) -> Annotations:
    captions, clips, num_wrong = [], {}, 0
    for video_id, video in videos.items():
        for (start, end), text in zip(video.segments, video.sentences, strict=True):
            if not 0 <= start < end:
                num_wrong += 1
                continue
            clip = Clip(video_id, TimeRange(start, end))
            clips[clip.video_id] = clip
            captions.append(Caption(clip.video_id, text))
    if num_wrong:
        notes.append(f"{num_wrong} sentences of segments that there are not are left out")
    return Annotations(captions, notes, clips, names)


register_layout("activitynet", ActivityNet())
