from __future__ import annotations

import json

import pytest

from garevla.data import AnnotationError, Caption, TimeRange
from garevla.data.layouts import layout_of

VIDEOS = {
    "v_aaa": (10.0, [[0, 4.5], [4, 10.011]], ["A dog.", " It runs."]),
    "bbb": (9.5, [[8, 3], [5, 5], [0.25, 9.51]], ["One.", "Two.", "Three."]),
    "v_ccc": (5, [[1, 2]], ["Four."]),
}


def write(folder, **changes):
    content = {
        i: {"duration": d, "timestamps": t, "sentences": s, **changes}
        for i, (d, t, s) in VIDEOS.items()
    }
    (folder / "val_1.json").write_text(json.dumps(content))


@pytest.fixture
def folder(tmp_path):
    write(tmp_path)
    (tmp_path / "videos").mkdir()
    return tmp_path


def read(folder, split="test"):
    return layout_of("auto", folder).annotations(folder, split)


def test_paragraphs_and_what_is_wrong_with_times(folder):
    found = read(folder)
    assert found.captions == [
        Caption("v_aaa", "A dog. It runs."),
        Caption("bbb", "One. Two. Three."),
        Caption("v_ccc", "Four."),
    ]
    assert found.notes == [
        "1 videos have times beyond their duration: v_aaa",
        "1 videos have segments that end before they start: bbb",
        "1 videos have segments of no length: bbb",
    ]


def test_sentences(folder):
    found = read(folder, "test-sentences")
    assert [caption.text for caption in found.captions] == ["A dog.", "It runs.", "Three.", "Four."]
    assert found.clips["bbb#t=0.25,9.51"].time_range == TimeRange(0.25, 9.51)
    assert found.notes[-1] == "2 sentences of segments that there are not are left out"


def test_ids_without_captions(folder):
    (folder / "val_ids.json").write_text(json.dumps(["aaa", "v_bbb", "v_ddd", "v_ddd"]))
    twice, silent = read(folder).notes[:2]
    assert twice.startswith("1 ids are listed more than once")
    assert silent.startswith("1 of 3 videos of ")
    assert silent.endswith("val_1.json and are left out: v_ddd")


@pytest.mark.parametrize("prefix", ["v_", ""])
def test_files_with_and_without_prefix(folder, prefix):
    for name in ("aaa", "bbb", "ccc"):
        (folder / "videos" / f"{prefix}{name}.mkv").touch()
    split = layout_of("auto", folder).load(folder, folder / "videos", "test")
    assert [path.name for path in split.videos.values()] == [
        f"{prefix}{name}.mkv" for name in ("aaa", "bbb", "ccc")
    ]
    assert list(split.videos) == ["v_aaa", "bbb", "v_ccc"]


def test_files_by_their_names_in_a_list(folder):
    (folder / "videos" / "deep").mkdir()
    for name in ("deep/one.avi", "two.avi", "v_ccc.avi"):
        (folder / "videos" / name).touch()
    paths = {"aaa": "deep/one.avi", "v_bbb": "two.avi"}
    (folder / "video_path.json").write_text(json.dumps(paths))
    layout = layout_of("auto", folder)
    split = layout.load(folder, folder / "videos", "test")
    assert [path.name for path in split.videos.values()] == ["one.avi", "two.avi", "v_ccc.avi"]
    assert read(folder).notes[-1].startswith("1 of 3 videos are not in ")
    assert read(folder).notes[-1].endswith("video_path.json and looked for by id: v_ccc")


@pytest.mark.parametrize(
    "changes",
    [
        {"duration": "long"},
        {"duration": None},
        {"duration": 10**400},
        {"timestamps": 5},
        {"timestamps": [[1, 2, 3]]},
        {"timestamps": [["a", 2]]},
        {"sentences": "a dog"},
        {"sentences": []},
        {"sentences": [""]},
        {"sentences": [7]},
    ],
)
def test_wrong_types_are_named(folder, changes):
    write(folder, **changes)
    for split in ("test", "test-sentences"):
        with pytest.raises(AnnotationError, match=r"val_1.json, 'v_aaa'"):
            read(folder, split)


def test_an_id_twice(folder):
    (folder / "val_1.json").write_text('{"v_a": 1, "v_a": 2}')
    with pytest.raises(AnnotationError, match=r"val_1.json: key 'v_a' occurs twice"):
        read(folder)
