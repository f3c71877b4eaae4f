from __future__ import annotations

import json

import pytest

from garevla.data import AnnotationError, Caption, TimeRange
from garevla.data.layouts import layout_of

ROWS = [
    {"video": "a.mp4", "caption": "a dog, running", "split": "train"},
    {"video": "b", "caption": 'a "cat"', "start": 0.5, "end": 2, "split": "train"},
    {"video": "deep/c", "caption": "ein K\u00e4fer", "split": "test"},
]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "videos" / "deep").mkdir(parents=True)
    for name in ("a.mp4", "b.webm", "deep/c.mkv", "c.mp4"):
        (tmp_path / "videos" / name).touch()
    return tmp_path


def read(folder, split):
    return layout_of("auto", folder).annotations(folder, split)


def write(path, rows, end="\n"):
    if path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    else:
        mark = "," if path.suffix == ".csv" else "\t"
        lines = [["video", "caption", "start", "end", "split"]]
        for row in rows:
            values = [str(row.get(name, "")) for name in lines[0]]
            if mark == ",":
                values = [f'"{v}"' if "," in v else v for v in values]
            lines.append(values)
        content = end.join(mark.join(line) for line in lines)
        path.write_bytes(b"\xef\xbb\xbf" + content.encode())


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".json", ".jsonl"])
def test_a_table_with_splits(folder, suffix):
    write(folder / f"captions{suffix}", ROWS, "\r\n")
    found = read(folder, "train")
    assert found.captions == [
        Caption("a.mp4", "a dog, running"),
        Caption("b#t=0.5,2", 'a "cat"'),
    ]
    assert not found.notes
    layout = layout_of("auto", folder)
    train = layout.load(folder, folder / "videos", "train")
    assert [path.name for path in train.videos.values()] == ["a.mp4", "b.webm"]
    assert train.time_ranges == {"b#t=0.5,2": TimeRange(0.5, 2)}
    test = layout.load(folder, folder / "videos", "test")
    assert test.captions == (Caption("deep/c", "ein K\u00e4fer"),)
    assert test.videos["deep/c"] == folder / "videos" / "deep" / "c.mkv"
    with pytest.raises(AnnotationError, match="split 'val' has no caption"):
        read(folder, "val")


def test_a_table_for_each_split(folder):
    rows = [{"video": "a", "caption": "x"}]
    write(folder / "train.csv", rows)
    write(folder / "test.jsonl", rows)
    assert read(folder, "train").captions == read(folder, "test").captions == [Caption("a", "x")]
    with pytest.raises(FileNotFoundError, match=r"val.csv does not exist, nor with another of"):
        read(folder, "val")
    write(folder / "test.csv", rows)
    with pytest.raises(
        AnnotationError, match=r"which of .*test.csv and .*test.jsonl is to be read"
    ):
        read(folder, "test")


def test_without_splits_all_is_in_each(folder):
    content = {"a": "one", "b": ["two", "three"]}
    (folder / "captions.json").write_text(json.dumps(content))
    found = read(folder, "test")
    assert found.captions == [Caption("a", "one"), Caption("b", "two"), Caption("b", "three")]
    assert found.notes == [f"{folder / 'captions.json'} names no splits: all of it is test"]


def test_texts_beside_videos(folder):
    videos = folder / "videos"
    (videos / "a.txt").write_bytes(b"\xef\xbb\xbfa dog\r\n\r\na hound\r\n")
    (videos / "deep" / "c.txt").write_text("a beetle")
    found = read(videos, "test")
    assert found.captions == [
        Caption("a", "a dog"),
        Caption("a", "a hound"),
        Caption("deep/c", "a beetle"),
    ]
    whole, silent = found.notes
    assert whole.endswith("has no folders train, val and test: all of it is test")
    assert silent == "2 of 4 videos have no caption in a text file beside them: b, c"
    split = layout_of("auto", videos).load(videos, videos, "test")
    assert split.videos["deep/c"] == videos / "deep" / "c.mkv"
    (videos / "deep").rename(videos / "train")
    assert read(videos, "train").captions == [Caption("train/c", "a beetle")]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"video": ""}, "video"),
        ({"caption": None}, "caption"),
        ({"start": 1}, "start and end go together"),
        ({"start": 2, "end": 1}, "must have 0 <= start < end"),
        ({"start": "soon", "end": 1}, "start must be a number, got 'soon'"),
        ({"split": "dev"}, r"split must be one of \['train', 'val', 'test'\], got 'dev'"),
        ({"split": ""}, "no split, which other rows have"),
    ],
)
@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".json", ".jsonl"])
def test_wrong_rows_are_named(folder, suffix, change, message):
    rows = [ROWS[0], {**ROWS[0], **{k: "" if v is None else v for k, v in change.items()}}]
    write(folder / f"captions{suffix}", rows)
    where = {
        ".csv": "(row|line) [23]",
        ".tsv": "(row|line) [23]",
        ".json": r"\[1\]",
        ".jsonl": "line 2",
    }
    with pytest.raises(AnnotationError, match=rf"captions{suffix},? ?{where[suffix]}.*{message}"):
        read(folder, "train")
