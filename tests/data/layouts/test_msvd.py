from __future__ import annotations

import json
import pickle

import pytest

from garevla.data import AnnotationError, Caption
from garevla.data.layouts import layout_of
from garevla.data.plain_pickles import UnsafePickleError

CAPTIONS = {"a_1_2": ["a dog runs", "a dog"], "b_3_4": ["someone cooks"], "c_5_6": []}


def read(folder, split="train"):
    return layout_of("auto", folder).annotations(folder, split)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "train_list.txt").write_bytes("\ufeffb_3_4\r\na_1_2\r\n\r\n".encode())
    (tmp_path / "test_list.txt").write_text("c_5_6\na_1_2\nc_5_6\nd_7_8")
    return tmp_path


def write_pickle(folder, content, protocol=4):
    (folder / "raw-captions.pkl").write_bytes(pickle.dumps(content, protocol=protocol))


@pytest.mark.parametrize("kind", ["json", 0, 1, 2, 4, 5])
def test_captions_of_lists(folder, kind):
    if kind == "json":
        (folder / "captions_msvd.json").write_text(json.dumps(CAPTIONS))
    else:
        words = {i: [text.split() for text in texts] for i, texts in CAPTIONS.items()}
        write_pickle(folder, words, kind)
    assert read(folder).captions == [
        Caption("b_3_4", "someone cooks"),
        Caption("a_1_2", "a dog runs"),
        Caption("a_1_2", "a dog"),
    ]
    assert not read(folder).notes
    found = read(folder, "test")
    assert found.video_ids == ["a_1_2"]
    twice, silent = found.notes
    assert "1 ids are listed more than once in" in twice
    assert twice.endswith("test_list.txt: c_5_6")
    assert "2 of 3 videos of test_list.txt have no caption" in silent
    assert silent.endswith(": c_5_6, d_7_8")
    with pytest.raises(FileNotFoundError, match=r"val_list.txt does not exist"):
        read(folder, "val")


class Runs:
    def __reduce__(self):
        return (pytest.fail, ("the pickle was run",))


class Plain:
    pass


@pytest.mark.parametrize("protocol", [0, 1, 2, 4])
@pytest.mark.parametrize(
    "value",
    [Runs(), Plain(), print, [Runs()], 7, None, 1.5, b"words"],
    ids=lambda value: type(value).__name__,
)
def test_a_pickle_of_anything_else_is_refused_and_not_run(folder, value, protocol):
    write_pickle(folder, {"a_1_2": ["a dog"], "b_3_4": value}, protocol)
    with pytest.raises(UnsafePickleError, match=r"raw-captions.pkl is refused: .* at byte \d+"):
        read(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (["a"], "raw-captions.pkl must be captions by video id"),
        ({"a_1_2": "a dog"}, "captions of 'a_1_2' must be a list, got 'a dog'"),
        ({"a_1_2": [["a", ["dog"]]]}, r"captions of 'a_1_2'\[0\] must be a text"),
        ({"a_1_2": [[]]}, r"captions of 'a_1_2'\[0\] must be a text that is not empty"),
        ({("a",): "a dog"}, "is not a whole pickle: a tuple is a key"),
    ],
)
def test_pickles_of_the_wrong_form(folder, content, message):
    write_pickle(folder, content)
    with pytest.raises(AnnotationError, match=message):
        read(folder)


def test_pickles_that_hold_themselves_or_are_cut(folder):
    circle = []
    circle.append(circle)
    write_pickle(folder, {"a_1_2": circle, "b_3_4": []})
    with pytest.raises(AnnotationError, match=r"captions of 'a_1_2'\[0\] must be a text"):
        read(folder)
    deep = ["x"]
    for _ in range(60):
        deep = [deep, deep]
    write_pickle(folder, {"a_1_2": [deep], "b_3_4": []})
    with pytest.raises(AnnotationError, match=r"captions of 'a_1_2'\[0\] must be a text"):
        read(folder)
    whole = pickle.dumps(CAPTIONS)
    for length in range(len(whole)):
        (folder / "raw-captions.pkl").write_bytes(whole[:length])
        with pytest.raises(AnnotationError, match=r"raw-captions.pkl"):
            read(folder)
