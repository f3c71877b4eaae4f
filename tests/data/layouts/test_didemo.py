from __future__ import annotations

import json

import pytest

from garevla.data import AnnotationError, Caption, TimeRange
from garevla.data.layouts import layout_of

SENTENCES = [
    ("1@N0_a.mov", "A dog.", [[1, 1], [0, 2], [1, 1], [2, 2]]),
    ("2@N0_b.", " it jumps", [[5, 5]]),
    ("1@N0_a.mov", "It runs.", [[0, 1], [2, 2]]),
    ("3@N0_c.mp4", "a cat", [[0, 0]]),
]


@pytest.fixture
def folder(tmp_path):
    rows = [{"video": v, "description": d, "times": t} for v, d, t in SENTENCES]
    (tmp_path / "test_data.json").write_text(json.dumps(rows))
    (tmp_path / "videos").mkdir()
    return tmp_path


def read(folder, split="test"):
    return layout_of("auto", folder).annotations(folder, split)


PARAGRAPHS = [
    Caption("1@N0_a.mov", "A dog. It runs."),
    Caption("2@N0_b.", "it jumps"),
    Caption("3@N0_c.mp4", "a cat"),
]


def test_paragraphs(folder):
    found = read(folder)
    assert found.captions == PARAGRAPHS
    (note,) = found.notes
    assert "neither test_list.txt nor didemo_test_label.csv is there" in note
    with pytest.raises(FileNotFoundError, match=r"train_data.json does not exist"):
        read(folder, "train")


@pytest.mark.parametrize("ids", ["2@N0_b.\n1@N0_a.mov\n", "2@N0_b\r\n1@N0_a\r\n"])
def test_a_list_by_whole_names_or_stems(folder, ids):
    (folder / "test_list.txt").write_bytes((ids + "9@N0_z.mp4\n").encode())
    found = read(folder)
    assert found.captions == [PARAGRAPHS[1], PARAGRAPHS[0]]
    absent, unused = found.notes
    assert absent.startswith("1 of 3 videos of ")
    assert absent.endswith("test_data.json: 9@N0_z.mp4")
    assert unused.startswith("1 of 3 videos are not in ")
    assert unused.endswith(": 3@N0_c.mp4")


def test_paragraphs_of_a_table(folder):
    (folder / "didemo_test_label.csv").write_text(
        "success,video_path,starts,ends,text,formatted_data\n"
        'True,/far/away/2@N0_b.,0,31,"it jumps, high",x\n'
        "True,/far/away/1@N0_a.mov,0,31,a dog,x\n"
        "False,/far/away/3@N0_c.mp4,0,31,a cat,x\n"
    )
    found = read(folder)
    assert found.captions == [Caption("2@N0_b.", "it jumps, high"), Caption("1@N0_a.mov", "a dog")]
    failed, unused = found.notes
    assert failed.startswith("1 rows of ")
    assert unused.endswith("didemo_test_label.csv and left out: 3@N0_c.mp4")
    assert len(read(folder, "test-sentences").captions) == 3
    (folder / "test_data.json").unlink()
    assert read(folder).captions == found.captions


def test_sentences_with_the_moment_most_agree_on(folder):
    found = read(folder, "test-sentences")
    assert found.captions == [
        Caption("1@N0_a.mov#t=5,10", "A dog."),
        Caption("2@N0_b.#t=25,30", "it jumps"),
        Caption("1@N0_a.mov#t=0,10", "It runs."),
        Caption("3@N0_c.mp4#t=0,5", "a cat"),
    ]
    for name in ("1@N0_a.mov", "2@N0_b.mp4", "3@N0_c.mp4"):
        (folder / "videos" / name).touch()
    split = layout_of("auto", folder).load(folder, folder / "videos", "test-sentences")
    assert split.videos["1@N0_a.mov#t=0,10"] == folder / "videos" / "1@N0_a.mov"
    assert split.time_ranges["2@N0_b.#t=25,30"] == TimeRange(25, 30)


@pytest.mark.parametrize(
    "names",
    [
        ("1@N0_a.mov", "2@N0_b.", "3@N0_c.mp4"),
        ("1@N0_a.mp4", "2@N0_b.mp4", "3@N0_c.mp4"),
        ("1@N0_a.mov.mp4", "2@N0_b..mp4", "3@N0_c.avi"),
        ("1@N0_a", "2@N0_b", "3@N0_c"),
    ],
)
def test_files_by_whole_names_or_stems(folder, names):
    for name in names:
        (folder / "videos" / name).touch()
    split = layout_of("auto", folder).load(folder, folder / "videos", "test")
    assert [path.name for path in split.videos.values()] == list(names)


def test_a_file_is_one_videos_alone(folder):
    rows = [{"video": v, "description": "d", "times": [[0, 0]]} for v in ("x.", "x.mp4", "y.mov")]
    (folder / "test_data.json").write_text(json.dumps(rows))
    for name in ("x.mp4", "y.mp4"):
        (folder / "videos" / name).touch()
    layout = layout_of("auto", folder)
    files = layout.captions_and_files(folder, folder / "videos", "test").videos
    assert {i: path.name for i, path in files.items()} == {"x.mp4": "x.mp4", "y.mov": "y.mp4"}
    rows[1]["video"] = "x.mov"
    (folder / "test_data.json").write_text(json.dumps(rows))
    with pytest.raises(AnnotationError, match=r"x.mp4 may be the file of 'x.' and of 'x.mov'"):
        layout.captions_and_files(folder, folder / "videos", "test")


@pytest.mark.parametrize(
    "times",
    [None, [], [1, 1], [[1]], [[2, 1]], [[0, 1.5]], [[True, True]], [[-1, 0]], [[0, 10**9]]],
)
def test_moments_that_are_none(folder, times):
    rows = [{"video": "a.mov", "description": "d", "times": times}]
    (folder / "test_data.json").write_text(json.dumps(rows))
    with pytest.raises(AnnotationError, match=r"test_data.json\[0\], times: must be pairs"):
        read(folder, "test-sentences")
