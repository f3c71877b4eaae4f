from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from garevla.data import AnnotationError, Caption, load_msrvtt
from garevla.data.layouts import layout_of


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    """The files of a tiny MSR-VTT; videos need only exist."""
    sentences = [
        {"video_id": "video1", "sen_id": 0, "caption": "a dog runs"},
        {"video_id": "video0", "sen_id": 1, "caption": "a man sings, loudly"},
        {"video_id": "video1", "sen_id": 2, "caption": "a running dog"},
        {"video_id": "video9", "sen_id": 3, "caption": ""},
        {"video_id": "video2", "sen_id": 4, "caption": "NA"},
    ]
    (tmp_path / "MSRVTT_data.json").write_text(json.dumps({"videos": [], "sentences": sentences}))
    (tmp_path / "MSRVTT_train.9k.csv").write_text("video_id\nvideo0\nvideo2\nvideo1\n")
    (tmp_path / "MSRVTT_train.7k.csv").write_text("\ufeffvideo_id\nvideo1\n", encoding="utf-8")
    (tmp_path / "MSRVTT_JSFUSION_test.csv").write_text(
        "key,vid_key,video_id,sentence\n"
        "ret0,msr7,video7,a cat sleeps\n"
        'ret1,msr8,video8,"a cook, at work"\n'
        "ret2,msr7,video7,a sleeping cat\n"
    )
    (tmp_path / "videos").mkdir()
    for name in ("video0", "video1", "video2", "video7", "video8"):
        (tmp_path / "videos" / f"{name}.mp4").touch()
    return tmp_path


def load(layout: Path, split: str = "train-9k", **options):
    return load_msrvtt(layout, layout / "videos", split, **options)


def test_training_split(layout):
    split = load(layout)
    assert split.captions == (
        Caption("video0", "a man sings, loudly"),
        Caption("video2", "NA"),
        Caption("video1", "a dog runs"),
        Caption("video1", "a running dog"),
    )
    assert list(split.videos) == ["video0", "video2", "video1"]
    assert split.videos["video2"] == layout / "videos" / "video2.mp4"


def test_smaller_training_split_and_byte_order_mark(layout):
    split = load(layout, "train-7k")
    assert split.captions == (Caption("video1", "a dog runs"), Caption("video1", "a running dog"))


def test_test_split_with_several_captions_per_video(layout):
    split = load(layout, "test")
    assert split.captions == (
        Caption("video7", "a cat sleeps"),
        Caption("video8", "a cook, at work"),
        Caption("video7", "a sleeping cat"),
    )
    assert list(split.videos) == ["video7", "video8"]


def test_videos_in_sub_folders_and_other_containers(layout):
    videos = layout / "videos"
    (videos / "deep" / "er").mkdir(parents=True)
    (videos / "video0.mp4").rename(videos / "deep" / "er" / "video0.MP4")
    (videos / "video1.mp4").rename(videos / "deep" / "video1.webm")
    (videos / "deep" / "video2.mkv").touch()
    (videos / "deep" / "video1.txt").touch()
    split = load(layout)
    assert split.videos == {
        "video0": videos / "deep" / "er" / "video0.MP4",
        "video2": videos / "video2.mp4",
        "video1": videos / "deep" / "video1.webm",
    }


def test_linked_folders_are_searched_and_circles_end(layout, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    videos = layout / "videos"
    (videos / "video0.mp4").rename(elsewhere / "video0.mp4")
    (videos / "linked").symlink_to(elsewhere, target_is_directory=True)
    (elsewhere / "back").symlink_to(videos, target_is_directory=True)
    assert load(layout).videos["video0"] == videos / "linked" / "video0.mp4"


def test_two_files_for_a_wanted_video_are_named(layout):
    other = layout / "videos" / "other"
    other.mkdir()
    (other / "video5.mp4").touch()
    (layout / "videos" / "video5.mp4").touch()
    load(layout)
    (other / "video1.mp4").touch()
    with pytest.raises(AnnotationError) as caught:
        load(layout)
    assert str(other / "video1.mp4") in str(caught.value)
    assert str(layout / "videos" / "video1.mp4") in str(caught.value)


def test_missing_videos(layout, caplog):
    (layout / "videos" / "video1.mp4").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 3 videos .*'train-9k'.*: video1$"):
        load(layout)
    with caplog.at_level(logging.WARNING):
        split = load(layout, missing="skip")
    assert list(split.videos) == ["video0", "video2"]
    assert {caption.video_id for caption in split.captions} == {"video0", "video2"}
    assert "skipped 1 of 3 videos" in caplog.text
    assert "2 of 4 captions" in caplog.text


def test_no_video_at_all_is_an_error_even_when_skipping(layout):
    (layout / "empty").mkdir()
    with pytest.raises(AnnotationError, match="no video of split 'test'"):
        load_msrvtt(layout, layout / "empty", "test", missing="skip")


def test_unknown_split_and_missing_video_folder(layout):
    with pytest.raises(ValueError, match=r"one of \['train-9k', 'train-7k', 'test', .*'train-8k'"):
        load(layout, "train-8k")
    with pytest.raises(ValueError, match="missing must be 'error' or 'skip', got 'ignore'"):
        load(layout, missing="ignore")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_msrvtt(layout, layout / "nowhere", "test")


@pytest.mark.parametrize(
    ("split", "name"),
    [
        ("train-9k", "MSRVTT_train.9k.csv"),
        ("train-9k", "MSRVTT_data.json"),
        ("train-7k", "MSRVTT_train.7k.csv"),
        ("test", "MSRVTT_JSFUSION_test.csv"),
    ],
)
def test_missing_annotation_file_is_named(layout, split, name):
    (layout / name).unlink()
    with pytest.raises(FileNotFoundError, match=name):
        load(layout, split)


@pytest.mark.parametrize(
    ("split", "name", "content", "message"),
    [
        ("train-9k", "MSRVTT_train.9k.csv", "id\nvideo0\n", r"no column 'video_id'.*\['id'\]"),
        ("train-9k", "MSRVTT_train.9k.csv", "", "no column 'video_id'"),
        ("train-9k", "MSRVTT_train.9k.csv", "video_id\n", "has no rows"),
        ("train-9k", "MSRVTT_train.9k.csv", "video_id\nvideo0\nvideo6\n", "1 videos .*: video6$"),
        ("test", "MSRVTT_JSFUSION_test.csv", "video_id,text\nv,w\n", "no column 'sentence'"),
        ("test", "MSRVTT_JSFUSION_test.csv", "video_id,sentence\n", "has no rows"),
        ("test", "MSRVTT_JSFUSION_test.csv", "video_id,sentence\nv,\n", "line 2: no sentence"),
        ("test", "MSRVTT_JSFUSION_test.csv", "video_id,sentence\nv\n", "line 2: no sentence"),
        ("test", "MSRVTT_JSFUSION_test.csv", "video_id,sentence\nv,a,b\n", "line 2: more fields"),
        ("train-9k", "MSRVTT_data.json", "{", "not valid JSON"),
        ("train-9k", "MSRVTT_data.json", "[]", "list 'sentences'"),
        ("train-9k", "MSRVTT_data.json", '{"sentences": [{"caption": "a"}]}', r"sentences\[0\]"),
        ("train-9k", "MSRVTT_data.json", '{"sentences": ["a"]}', r"sentences\[0\]"),
        (
            "train-9k",
            "MSRVTT_data.json",
            '{"sentences": [{"video_id": ["video0"], "caption": "a"}]}',
            r"sentences\[0\]",
        ),
    ],
)
def test_bad_annotation_file_is_named(layout, split, name, content, message):
    (layout / name).write_text(content)
    with pytest.raises(AnnotationError, match=message) as caught:
        load(layout, split)
    assert name in str(caught.value)


def test_an_empty_caption_of_a_wanted_video_is_an_error(layout):
    (layout / "MSRVTT_train.9k.csv").write_text("video_id\nvideo9\n")
    with pytest.raises(AnnotationError, match=r"MSRVTT_data\.json: empty caption of 'video9'"):
        load(layout)


def test_a_caption_that_cannot_be_written_down_is_an_error(layout):
    path = layout / "MSRVTT_data.json"
    path.write_text(path.read_text().replace("a dog runs", "a \\ud800 runs"))
    with pytest.raises(AnnotationError, match=r"caption of 'video1': \\ud800 is half of a charact"):
        load(layout)


def test_repeated_rows_and_captions_of_several_videos_are_counted(layout, caplog):
    with caplog.at_level(logging.INFO):
        load(layout, "test")
        assert not caplog.records
        with (layout / "MSRVTT_JSFUSION_test.csv").open("a") as file:
            for video in (7, 7, 8, 7):
                file.write(f"ret3,msr{video},video{video},a cat sleeps\n")
        split = load(layout, "test")
    assert len(split.captions) == 7
    repeated, shared = caplog.messages
    assert "3 of 7 captions repeat one of the same video, such as 'a cat sleeps' of 'video7'" in (
        repeated
    )
    assert "1 captions are of several videos each, such as 'a cat sleeps' of 2;" in shared


def test_the_official_splits(tmp_path):
    splits = {"video0": "train", "video1": "validate", "video2": "test", "video3": "test"}
    content = {
        "videos": [{"video_id": i, "split": split} for i, split in splits.items()],
        "sentences": [
            {"video_id": i, "caption": f"caption {n} of {i}"} for n in range(3) for i in splits
        ],
    }
    (tmp_path / "MSRVTT_data.json").write_text(json.dumps(content))
    read = layout_of("auto", tmp_path).annotations
    assert read(tmp_path, "train-full").video_ids == ["video0"]
    assert read(tmp_path, "val-full").video_ids == ["video1"]
    assert read(tmp_path, "test-full").video_ids == ["video2", "video3"]
    assert read(tmp_path, "test-full").captions[:2] == [
        Caption("video2", "caption 0 of video2"),
        Caption("video2", "caption 1 of video2"),
    ]


def test_the_full_test_split_has_20_captions_a_video(tmp_path):
    ids = [f"video{index}" for index in range(2990)]
    sentences = [{"video_id": i, "caption": f"caption {n} of {i}"} for i in ids for n in range(20)]
    videos = [{"video_id": i, "split": "test"} for i in ids]
    content = {"videos": videos, "sentences": sentences}
    (tmp_path / "MSRVTT_data.json").write_text(json.dumps(content))
    found = layout_of("msrvtt", tmp_path).annotations(tmp_path, "test-full")
    assert (len(found.video_ids), len(found.captions)) == (2990, 2990 * 20)


def test_the_json_of_1k_is_read_where_the_table_is_not_there(layout):
    rows = [
        {"video_id": "video8", "video": "video8.mp4", "caption": " a cook "},
        {"video_id": "video7", "video": "video7.mp4", "caption": "a cat"},
    ]
    (layout / "msrvtt_test_1k.json").write_text(json.dumps(rows))
    assert len(load(layout, "test").captions) == 3
    (layout / "MSRVTT_JSFUSION_test.csv").unlink()
    assert load(layout, "test").captions == (
        Caption("video8", "a cook"),
        Caption("video7", "a cat"),
    )


def test_ids_that_are_listed_twice_are_named(layout, caplog):
    (layout / "MSRVTT_train.9k.csv").write_text("video_id\nvideo0\nvideo1\nvideo0\n")
    assert list(load(layout).videos) == ["video0", "video1"]
    assert "1 ids are listed more than once in" in caplog.text
    assert caplog.text.strip().endswith("MSRVTT_train.9k.csv: video0")
