"""Counts of the real annotation files, where a folder of them is given.

``GAREVLA_ANNOTATIONS`` is a folder with ``msvd``, ``msrvtt``, ``didemo``, ``activitynet`` and
``lsmdc`` in it.
"""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import pytest

from garevla.cli import main
from garevla.data.layouts import detect_layout, layout

FOLDER = Path(os.environ.get("GAREVLA_ANNOTATIONS", ""))
pytestmark = pytest.mark.skipif(
    "GAREVLA_ANNOTATIONS" not in os.environ, reason="GAREVLA_ANNOTATIONS names no folder"
)


@pytest.mark.parametrize(
    ("name", "split", "num_videos", "num_captions"),
    [
        ("msvd", "train", 1200, 48774),
        ("msvd", "val", 100, 4290),
        ("msvd", "test", 670, 27763),
        ("msrvtt", "test", 1000, 1000),
        ("didemo", "test", 1004, 1004),
        ("didemo", "val", 1094, 1094),
        ("activitynet", "test", 4917, 4917),
        ("activitynet", "train", 10009, 10009),
        ("activitynet", "test-sentences", 17505, 17505),
        ("lsmdc", "test", 1000, 1000),
    ],
)
def test_counts(name: str, split: str, num_videos: int, num_captions: int) -> None:
    assert detect_layout(FOLDER / name) == name
    found = layout(name).annotations(FOLDER / name, split)
    assert (len(found.video_ids), len(found.captions)) == (num_videos, num_captions)


def test_msvd_in_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["datasets", str(FOLDER / "msvd")]) == 0
    assert "in all     1,970    80,827\n" in capsys.readouterr().out


def test_msvd_as_clip4clip_has_it(tmp_path: Path) -> None:
    captions = json.loads((FOLDER / "msvd" / "captions_msvd.json").read_text())
    words = {video_id: [text.split() for text in texts] for video_id, texts in captions.items()}
    (tmp_path / "raw-captions.pkl").write_bytes(pickle.dumps(words))
    (tmp_path / "test_list.txt").write_bytes((FOLDER / "msvd" / "test_list.txt").read_bytes())
    assert len(layout("msvd").annotations(tmp_path, "test").captions) == 27763


def test_msrvtt_is_the_same_in_both_files(tmp_path: Path) -> None:
    content = (FOLDER / "msrvtt" / "msrvtt_test_1k.json").read_bytes()
    (tmp_path / "msrvtt_test_1k.json").write_bytes(content)
    read = layout("msrvtt").annotations
    assert set(read(tmp_path, "test").captions) == set(read(FOLDER / "msrvtt", "test").captions)


@pytest.mark.parametrize(
    ("name", "split", "notes"),
    [
        ("didemo", "test", ["33 of 1037 videos are not in "]),
        (
            "activitynet",
            "train",
            [
                "15 of 10024 videos of ",
                "9 videos have times beyond their duration",
                "2 videos have segments that end before they start",
            ],
        ),
        ("activitynet", "test", ["9 of 4926 videos of ", "47 of 4917 videos are not in "]),
        ("lsmdc", "test", ["1 clips are known to be damaged or missing: "]),
    ],
)
def test_what_is_wrong(name: str, split: str, notes: list[str]) -> None:
    found = layout(name).annotations(FOLDER / name, split).notes
    assert all(any(each.startswith(note) for each in found) for note in notes)
