"""VATEX: a JSON list of videos with their captions in English and Chinese."""

from __future__ import annotations

from pathlib import Path

from garevla.data.annotation_files import (
    check_objects,
    check_texts,
    note_absent,
    read_json,
    read_list,
)
from garevla.data.layouts import register_layout
from garevla.data.layouts.base import Layout
from garevla.data.splits import AnnotationError, Annotations, Caption

# Versions are part of the names, such as vatex_training_v1.0.json.
FILES = {
    "train": "vatex_training_v*.json",
    "val": "vatex_validation_v*.json",
    "test": "vatex_public_test_english_v*.json",
}


class VATEX(Layout):
    """The official files, of which the English captions (``enCap``) are read.

    ``train_list.txt``, ``val_list.txt`` or ``test_list.txt``, an id a line, chooses the videos of a
    split among those of all files, as where the validation videos are divided in two.
    """

    splits = tuple(FILES)
    looks_for = tuple(FILES.values())
    files = """\
annotations/vatex_training_v1.0.json             list of videoID and enCap
annotations/vatex_validation_v1.0.json
annotations/vatex_public_test_english_v1.1.json
annotations/test_list.txt                        ids, where a split is not a whole file
videos/abcdefghijk_000010_000020.mp4"""

    def read(self, annotation_dir: Path, split: str) -> Annotations:
        """As :meth:`Layout.read`; videos without captions are left out, and noted."""
        notes: list[str] = []
        list_file = annotation_dir / f"{split}_list.txt"
        texts: dict[str, list[str]] = {}
        patterns = FILES.values() if list_file.exists() else (FILES[split],)
        for path in [path for pattern in patterns for path in _files(annotation_dir, pattern)]:
            for index, each in enumerate(check_objects(str(path), read_json(path), "videoID")):
                where = f"{path}[{index}], enCap"
                captions = check_texts(where, each.get("enCap", []))
                texts.setdefault(each["videoID"].strip(), []).extend(captions)
        if not texts:
            raise FileNotFoundError(
                f"annotation file {annotation_dir / FILES[split]} does not exist, or is empty"
            )
        if "" in texts:
            raise AnnotationError(f"{annotation_dir}: an empty videoID")
        ids = read_list(list_file, notes) if list_file.exists() else texts
        spoken = {video_id: texts[video_id] for video_id in ids if texts.get(video_id)}
        note_absent(ids, spoken, "have no caption (enCap)", notes)
        return Annotations([Caption(i, text) for i in spoken for text in spoken[i]], notes)


def _files(annotation_dir: Path, pattern: str) -> list[Path]:
    """The newest of the versions that there are."""
    return sorted(annotation_dir.glob(pattern))[-1:]


register_layout("vatex", VATEX())
