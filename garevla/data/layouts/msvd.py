"""MSVD: a list of ids for each split, and one file of all captions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from garevla.data.annotation_files import (
    check_text,
    note_absent,
    read_json,
    read_list,
    unique_keys,
)
from garevla.data.layouts import register_layout
from garevla.data.layouts.base import Layout
from garevla.data.messages import brief
from garevla.data.plain_pickles import read_plain_pickle
from garevla.data.splits import AnnotationError, Annotations, Caption

JSON_FILE = "captions_msvd.json"
PICKLE_FILE = "raw-captions.pkl"


class MSVD(Layout):
    """The files that CLIP4Clip and X-Pool read.

    ``train_list.txt``, ``val_list.txt`` and ``test_list.txt`` hold an id a line. Captions are in
    ``captions_msvd.json``, an object of video ids, each with a list of captions; or else in
    ``raw-captions.pkl``, a pickled dictionary of video ids, each with a list of captions, which are
    strings or lists of words. Of a pickle only containers and strings are read.
    """

    splits = ("train", "val", "test")
    looks_for = (JSON_FILE, PICKLE_FILE)
    files = """\
annotations/raw-captions.pkl  all captions; or captions_msvd.json
annotations/train_list.txt    ids; also val_list.txt and test_list.txt
videos/abcdefghijk_5_15.avi"""

    def read(self, annotation_dir: Path, split: str) -> Annotations:
        """As :meth:`Layout.read`; ids without captions are left out, and noted."""
        notes: list[str] = []
        ids = read_list(annotation_dir / f"{split}_list.txt", notes)
        path = annotation_dir / JSON_FILE
        if path.exists() or not (annotation_dir / PICKLE_FILE).exists():
            content = read_json(path, unique_keys)
        else:
            path = annotation_dir / PICKLE_FILE
            content = read_plain_pickle(path)
        if not isinstance(content, dict):
            raise AnnotationError(f"{path} must be captions by video id, got {brief(content)}")
        texts = {video_id: _texts(path, video_id, content.get(video_id, [])) for video_id in ids}
        spoken = {video_id: each for video_id, each in texts.items() if each}
        note_absent(ids, spoken, f"of {split}_list.txt have no caption in {path}", notes)
        return Annotations([Caption(i, text) for i in spoken for text in spoken[i]], notes)


def _texts(path: Path, video_id: str, value: Any) -> list[str]:
    where = f"{path}, captions of {video_id!r}"
    if not isinstance(value, list | tuple):
        raise AnnotationError(f"{where} must be a list, got {brief(value)}")
    return [check_text(f"{where}[{index}]", _joined(each)) for index, each in enumerate(value)]


def _joined(caption: Any) -> Any:
    """A caption given word by word in one string."""
    is_list = isinstance(caption, list | tuple) and all(isinstance(word, str) for word in caption)
    return " ".join(caption) if is_list else caption


register_layout("msvd", MSVD())
