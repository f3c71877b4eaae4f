"""MSR-VTT: one JSON file of all captions, and a CSV file of each split."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from garevla.data.annotation_files import read_csv, read_json
from garevla.data.layouts import register_layout
from garevla.data.layouts.base import Layout
from garevla.data.messages import brief, shortened
from garevla.data.splits import AnnotationError, Caption

TRAIN_FILES = {"train-9k": "MSRVTT_train.9k.csv", "train-7k": "MSRVTT_train.7k.csv"}
TEST_FILE = "MSRVTT_JSFUSION_test.csv"
CAPTION_FILE = "MSRVTT_data.json"


class MSRVTT(Layout):
    """The files that published code for MSR-VTT reads.

    Training: ``MSRVTT_train.9k.csv`` or ``MSRVTT_train.7k.csv`` (column ``video_id``), and
    ``MSRVTT_data.json`` (``sentences``, a list of objects with ``video_id`` and ``caption``).
    Test: ``MSRVTT_JSFUSION_test.csv`` (columns ``video_id`` and ``sentence``; several rows per
    video are several captions).
    """

    splits = (*TRAIN_FILES, "test")

    def read_captions(self, annotation_dir: Path, split: str) -> Sequence[Caption]:
        """As :meth:`Layout.read_captions`; a training video without captions is an error."""
        if split == "test":
            rows = read_csv(annotation_dir / TEST_FILE, ("video_id", "sentence"))
            return [Caption(row["video_id"], row["sentence"]) for row in rows]
        id_file, caption_file = annotation_dir / TRAIN_FILES[split], annotation_dir / CAPTION_FILE
        rows = read_csv(id_file, ("video_id",))
        texts: dict[str, list[str]] = {row["video_id"]: [] for row in rows}
        for video_id, text in _read_sentences(caption_file):
            if video_id not in texts:
                continue
            if not text:
                raise AnnotationError(f"{caption_file}: empty caption of {video_id!r}")
            texts[video_id].append(text)
        silent = [video_id for video_id, captions in texts.items() if not captions]
        if silent:
            raise AnnotationError(
                f"{len(silent)} videos of {id_file} have no caption in {CAPTION_FILE}: "
                f"{shortened(silent)}"
            )
        return [Caption(video_id, text) for video_id in texts for text in texts[video_id]]


def _read_sentences(path: Path) -> Iterator[tuple[str, str]]:
    """Yield the video id and the caption of every sentence."""
    content = read_json(path)
    sentences = content.get("sentences") if isinstance(content, dict) else None
    if not isinstance(sentences, list):
        raise AnnotationError(f"{path} must be an object with a list 'sentences'")
    for index, sentence in enumerate(sentences):
        fields = sentence if isinstance(sentence, dict) else {}
        video_id, text = fields.get("video_id"), fields.get("caption")
        if not isinstance(video_id, str) or not isinstance(text, str):
            raise AnnotationError(
                f"{path}, sentences[{index}]: needs strings 'video_id' and 'caption', "
                f"got {brief(sentence)}"
            )
        yield video_id, text.strip()


_MSRVTT = MSRVTT()
register_layout("msrvtt", _MSRVTT)
load_msrvtt = _MSRVTT.load
