from __future__ import annotations

import json
from pathlib import Path

import pytest

from garevla.data.splits import AnnotationError
from garevla.evaluation import NearDuplicates

VIDEOS = ("a", "b", "c, d", "e", "f")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("list.json", json.dumps([["e", "a"], ["f", "c, d"], ["a", "e"]])),
        ("list.csv", '\ufeffa,e\r\n\r\n"c, d",f\r\n'),
        ("list.tsv", "a\te\nf\tc, d\t\n"),
    ],
)
def test_forms_of_a_list(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_bytes(text.encode())
    found = NearDuplicates.load(tmp_path / name, VIDEOS)
    assert found.groups.tolist() == [0, 1, 2, 0, 2]
    shown, _, digest = found.description.partition(" (sha256 ")
    assert shown == f"{name}, 2 groups of 4 videos"
    # The groups decide, not how they are written down.
    (tmp_path / "other.txt").write_text('f,"c, d"\ne,a\n')
    assert NearDuplicates.load(tmp_path / "other.txt", VIDEOS).description.endswith(digest)
    (tmp_path / "other.txt").write_text("e,a\n")
    assert not NearDuplicates.load(tmp_path / "other.txt", VIDEOS).description.endswith(digest)


def test_groups_that_share_a_video_are_one(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("a,b\nf,e\nb,e\n")
    found = NearDuplicates.load(tmp_path / "list.csv", VIDEOS)
    assert found.groups.tolist() == [0, 0, 2, 0, 0]
    assert "1 groups of 4 videos" in found.description


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("list.csv", "a,b\nx,a,y\n", "names 2 videos that are not ranked: x, y"),
        ("list.json", '[["a", "x"]]', "names 1 videos that are not ranked: x"),
        ("list.csv", "a,b\na\n", r"line 2: not two videos or more: \['a'\]"),
        ("list.json", '[["a", "b"], ["a", "a"]]', "list 2: not two videos or more"),
        ("list.csv", "\n", "lists no videos"),
        ("list.json", "[]", "lists no videos"),
        ("list.csv", 'a,"b\n', "line 1: "),
        ("list.json", '{"a": "b"}', "must be a list of lists of video ids"),
        ("list.json", '[["a", 1]]', "must be a list of lists of video ids"),
        ("list.json", "[[", "not valid JSON"),
    ],
)
def test_lists_that_are_none_are_named(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(AnnotationError, match=f"{name}.*{message}"):
        NearDuplicates.load(tmp_path / name, VIDEOS)


def test_a_list_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"list\.csv does not exist"):
        NearDuplicates.load(tmp_path / "list.csv", VIDEOS)
