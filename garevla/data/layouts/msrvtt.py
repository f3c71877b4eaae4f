"""MSR-VTT: one JSON file of all captions, and a CSV file of each split."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from garevla.data.annotation_files import (
    check_objects,
    check_text,
    read_csv,
    read_json,
    unique_ids,
)
from garevla.data.layouts import register_layout
from garevla.data.layouts.base import Layout
from garevla.data.messages import shortened
from garevla.data.splits import AnnotationError, Annotations, Caption

TRAIN_FILES = {"train-9k": "MSRVTT_train.9k.csv", "train-7k": "MSRVTT_train.7k.csv"}
TEST_FILE = "MSRVTT_JSFUSION_test.csv"
TEST_JSON_FILE = "msrvtt_test_1k.json"
CAPTION_FILE = "MSRVTT_data.json"

# Names of the official splits in the caption file.
_OFFICIAL = {"train-full": "train", "val-full": "validate", "test-full": "test"}


class MSRVTT(Layout):
    """The files that published code for MSR-VTT reads.

    Training: ``MSRVTT_train.9k.csv`` or ``MSRVTT_train.7k.csv`` (column ``video_id``), and
    ``MSRVTT_data.json`` (``sentences``, a list of objects with ``video_id`` and ``caption``).
    Test, 1k-A: ``MSRVTT_JSFUSION_test.csv`` (columns ``video_id`` and ``sentence``; several rows
    per video are several captions) or else ``msrvtt_test_1k.json`` (a list of objects with
    ``video_id`` and ``caption``). The official splits, with all captions: ``MSRVTT_data.json``
    alone (``videos``, a list of objects with ``video_id`` and ``split``).
    """

    splits = (*TRAIN_FILES, "test", *_OFFICIAL)
    train_split = "train-9k"
    looks_for = (CAPTION_FILE, TEST_FILE, TEST_JSON_FILE, "MSRVTT_train.*.csv")
    files = """\
annotations/MSRVTT_data.json          all captions; the official splits
annotations/MSRVTT_train.9k.csv       ids to train on; also MSRVTT_train.7k.csv
annotations/MSRVTT_JSFUSION_test.csv  1k-A; or msrvtt_test_1k.json
videos/video0.mp4"""

    def read(self, annotation_dir: Path, split: str) -> Annotations:
        """As :meth:`Layout.read`; a training video without captions is an error."""
        if split == "test":
            return Annotations(_read_test(annotation_dir))
        caption_file = annotation_dir / CAPTION_FILE
        notes: list[str] = []
        if split in _OFFICIAL:
            content = _read_captions(caption_file)
            videos = check_objects(f"{caption_file}, videos", content.get("videos"), "video_id")
            ids = (each["video_id"] for each in videos if each.get("split") == _OFFICIAL[split])
            return _captions_of(ids, content, caption_file, caption_file, notes)
        id_file = annotation_dir / TRAIN_FILES[split]
        rows = read_csv(id_file, ("video_id",))
        ids = (row["video_id"] for row in rows)
        return _captions_of(ids, _read_captions(caption_file), id_file, caption_file, notes)


def _read_test(annotation_dir: Path) -> list[Caption]:
    path, other = annotation_dir / TEST_FILE, annotation_dir / TEST_JSON_FILE
    if path.exists() or not other.exists():
        rows = read_csv(path, ("video_id", "sentence"))
        return [Caption(row["video_id"], row["sentence"]) for row in rows]
    return [
        Caption(each["video_id"], check_text(f"{other}[{index}], caption", each["caption"]))
        for index, each in enumerate(
            check_objects(str(other), read_json(other), "video_id", "caption")
        )
    ]


def _read_captions(path: Path) -> dict[str, Any]:
    content = read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("sentences"), list):
        raise AnnotationError(f"{path} must be an object with a list 'sentences'")
    return content


def _captions_of(
    ids: Iterable[str], content: dict[str, Any], id_file: Path, path: Path, notes: list[str]
) -> Annotations:
    texts: dict[str, list[str]] = {video_id: [] for video_id in unique_ids(id_file, ids, notes)}
    where = f"{path}, sentences"
    for each in check_objects(where, content["sentences"], "video_id", "caption"):
        video_id, text = each["video_id"], each["caption"].strip()
        if video_id not in texts:
            continue
        if not text:
            raise AnnotationError(f"{path}: empty caption of {video_id!r}")
        texts[video_id].append(text)
    silent = [video_id for video_id, captions in texts.items() if not captions]
    if silent:
        raise AnnotationError(
            f"{len(silent)} videos of {id_file} have no caption in {CAPTION_FILE}: "
            f"{shortened(silent)}"
        )
    captions = [Caption(video_id, text) for video_id in texts for text in texts[video_id]]
    return Annotations(captions, notes)


_MSRVTT = MSRVTT()
register_layout("msrvtt", _MSRVTT)
load_msrvtt = _MSRVTT.load
