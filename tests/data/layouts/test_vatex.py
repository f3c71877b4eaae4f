from __future__ import annotations

import json

import pytest

from garevla.data import AnnotationError, Caption
from garevla.data.layouts import layout_of


def write(folder, name, **videos):
    rows = [{"videoID": i, "enCap": texts, "chCap": ["x"]} for i, texts in videos.items()]
    (folder / name).write_text(json.dumps(rows))


def read(folder, split):
    return layout_of("auto", folder).annotations(folder, split)


def test_official_files_the_newest_of_each(tmp_path):
    write(tmp_path, "vatex_training_v1.0.json", a=["old"])
    write(tmp_path, "vatex_training_v1.1.json", a=["a dog", " a hound"], b=["a cat"])
    write(tmp_path, "vatex_public_test_english_v1.1.json", c=["a cow"], d=[])
    assert read(tmp_path, "train").captions == [
        Caption("a", "a dog"),
        Caption("a", "a hound"),
        Caption("b", "a cat"),
    ]
    assert read(tmp_path, "test").captions == [Caption("c", "a cow")]
    assert read(tmp_path, "test").notes == ["1 of 2 videos have no caption (enCap): d"]
    with pytest.raises(FileNotFoundError, match=r"vatex_validation_v\*.json does not exist"):
        read(tmp_path, "val")


def test_lists_divide_the_videos_of_all_files(tmp_path):
    write(tmp_path, "vatex_training_v1.0.json", a=["a dog"])
    write(tmp_path, "vatex_validation_v1.0.json", b=["a cat"], c=["a cow"])
    (tmp_path / "val_list.txt").write_text("b\n")
    (tmp_path / "test_list.txt").write_text("c\ne\n")
    assert read(tmp_path, "val").video_ids == ["b"]
    assert read(tmp_path, "test").video_ids == ["c"]
    assert read(tmp_path, "test").notes == ["1 of 2 videos have no caption (enCap): e"]
    assert read(tmp_path, "train").video_ids == ["a"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a": 1}, "must be a list of objects"),
        ([1], r"\[0\]: needs string 'videoID'"),
        ([{"videoID": "a", "enCap": "x"}], r"\[0\], enCap must be a list of texts"),
        ([{"videoID": "a", "enCap": ["x", " "]}], r"\[0\], enCap\[1\] must be a text"),
    ],
)
def test_wrong_types_are_named(tmp_path, content, message):
    (tmp_path / "vatex_training_v1.0.json").write_text(json.dumps(content))
    with pytest.raises(AnnotationError, match=r"vatex_training_v1.0.json" + ".*" + message):
        read(tmp_path, "train")
