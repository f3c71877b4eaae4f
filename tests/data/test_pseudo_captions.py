from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from garevla.data import Caption, RetrievalSplit, load_msrvtt
from garevla.data.pseudo_captions import PseudoCaptionError, PseudoCaptions

FRAMES = ["a red circle", "a red circle on the left"]


@pytest.fixture
def load(tmp_path):
    def write_and_load(content: object) -> PseudoCaptions:
        text = content if isinstance(content, str) else json.dumps(content)
        path = tmp_path / "pseudo.json"
        path.write_text(text, encoding="utf-8")
        return PseudoCaptions.load(path)

    return write_and_load


def split_of(*captions: tuple[str, str]) -> RetrievalSplit:
    return RetrievalSplit(
        tuple(Caption(*caption) for caption in captions),
        {video_id: Path(f"{video_id}.mp4") for video_id, _ in captions},
    )


def test_published_keys_and_keys_of_videos(load):
    pseudo = load({"video0_a dog": FRAMES, "video1": ["x"], "video0": ["y", "z"], "video9": ["w"]})
    assert pseudo.find(Caption("video0", "a dog")) == tuple(FRAMES)
    assert pseudo.find(Caption("video0", "a cat")) == ("y", "z")
    assert pseudo.find(Caption("video1", "anything")) == ("x",)
    assert pseudo.find(Caption("video2", "a dog")) is None
    assert pseudo.find(Caption("video", "0")) is None


def test_underscores_in_ids_and_captions(load):
    pseudo = load({"my_clip_1_a_b _c": FRAMES, "my_clip": ["x"], "_": ["y"]})
    assert pseudo.find(Caption("my_clip_1", "a_b _c")) == tuple(FRAMES)
    assert pseudo.find(Caption("my_clip", "1")) == ("x",)
    assert pseudo.find(Caption("my", "clip_2")) is None
    assert pseudo.find(Caption("_", "z")) == ("y",)


def test_white_space_that_reading_captions_takes_off(load):
    pseudo = load({"video0_a dog \n": FRAMES, "video1_a cat ": ["x"], "video1_a cat": ["y"]})
    assert pseudo.find(Caption("video0", "a dog")) == tuple(FRAMES)
    assert pseudo.find(Caption("video1", "a cat")) == ("y",)


def test_equal_sets_are_held_once(load):
    pseudo = load({"video0_a": FRAMES, "video0_b": FRAMES})
    assert pseudo.find(Caption("video0", "a")) is pseudo.find(Caption("video0", "b"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "pseudo.json is not valid JSON"),
        ('{"video0": ["a"', "pseudo.json is not valid JSON"),
        ([{"video0": FRAMES}], "pseudo.json must be an object of lists of strings, got a list"),
        ({}, "got an empty object"),
        ('{"video0": ["a"], "video1": ["a"], "video0": ["b"]}', "json: key 'video0' occurs twice"),
        ({"video0": ["a"], "video1": []}, r"pseudo.json, key 'video1': .* got \[\]"),
        ({"video0": "a red circle"}, "key 'video0': .* got 'a red circle'"),
        ({"video0": ["a", None]}, r"key 'video0': .* got \['a', None\]"),
        ({"video0_x": {"0": "a"}}, "key 'video0_x'"),
        ({"video0": [["a"]]}, "key 'video0'"),
        ({"video0": ["a", "\ud800"]}, r"pseudo.json, .*: \\ud800 is half of a character"),
        ({"video0": [7] * 1000}, r"key 'video0': .{,150}\.\.\.$"),
    ],
)
def test_files_that_are_not_as_they_should_be(load, content, message):
    with pytest.raises(PseudoCaptionError, match=message):
        load(content)


def test_a_file_that_is_not_there_or_not_text(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.json"):
        PseudoCaptions.load(tmp_path / "absent.json")
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(PseudoCaptionError, match=r"binary\.json is not UTF-8: byte 0xff"):
        PseudoCaptions.load(tmp_path / "binary.json")


def test_empty_captions_are_counted(load, caplog):
    with caplog.at_level(logging.WARNING):
        assert load({"video0": ["a", " "], "video1": ["", "b", "c"]})
    assert "pseudo.json: 2 pseudo captions are empty" in caplog.text


def test_a_split_that_is_covered_stays_as_it_is(load, caplog):
    split = split_of(("a", "one"), ("a", "two"), ("b", "one"))
    pseudo = load({"a": FRAMES, "b_one": FRAMES})
    for missing in ("error", "skip"):
        assert pseudo.cover(split, missing=missing) is split
    assert not caplog.text


def test_missing_pseudo_captions_are_counted_and_named(load):
    split = split_of(("a", "one"), ("a", "two"), ("b", "three"), ("b", "four"), ("c", "five"))
    with pytest.raises(
        PseudoCaptionError, match=r"3 of 5 captions, of 2 of 3 videos: a: 'two', b: 'three', b: 'f"
    ):
        load({"a_one": FRAMES, "c": FRAMES}).cover(split)
    many = split_of(*((f"video{i}", "text") for i in range(50)))
    with pytest.raises(PseudoCaptionError, match=r"50 of 50 .*video19.* and 30 more") as caught:
        load({"a": FRAMES}).cover(many, missing="skip")
    assert "video20" not in str(caught.value)


def test_skipping_drops_captions_and_silent_videos(load, caplog):
    split = split_of(("a", "one"), ("b", "three"), ("a", "two"), ("b", "four"), ("c", "five"))
    with caplog.at_level(logging.WARNING):
        left = load({"a_two": FRAMES, "c": FRAMES}).cover(split, missing="skip")
    assert left == split_of(("a", "two"), ("c", "five"))
    assert list(left.videos) == ["a", "c"]
    assert "skipped 3 of 5 captions" in caplog.text
    assert "1 of 3 videos" in caplog.text
    assert "pseudo.json" in caplog.text


def test_missing_takes_two_words(load):
    with pytest.raises(ValueError, match="must be 'error' or 'skip', got 'ignore'"):
        load({"a": FRAMES}).cover(split_of(("a", "one")), missing="ignore")


def test_the_generated_data_set_is_covered(small_dataset):
    annotations = small_dataset / "annotations"
    pseudo = PseudoCaptions.load(annotations / "pseudo_captions.json")
    for name in ("train-9k", "test"):
        split = load_msrvtt(annotations, small_dataset / "videos", name)
        assert pseudo.cover(split) is split
