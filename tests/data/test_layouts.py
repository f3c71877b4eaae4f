from __future__ import annotations

import json
from pathlib import Path

import pytest

from garevla.data import (
    AnnotationError,
    Annotations,
    BadVideosError,
    Caption,
    Layout,
    check_split,
    layout,
    layouts,
    load_split,
    register_layout,
)
from garevla.data.annotation_files import read_json
from garevla.data.layouts.msrvtt import MSRVTT


class Paragraphs(Layout):
    """Ids listed apart from the sentences, which are joined; ids keep their file's extension."""

    splits = ("train", "test")

    def read(self, annotation_dir, split):
        sentences = read_json(annotation_dir / "sentences.json")
        video_ids = (annotation_dir / f"{split}.txt").read_text().split()
        return Annotations(
            [Caption(i, " ".join(s.strip() for s in sentences[i])) for i in video_ids]
        )


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The layout under the name "paragraphs", for one test."""
    layout("msrvtt")
    monkeypatch.setattr(layouts, "_LAYOUTS", dict(layouts._LAYOUTS))
    register_layout("paragraphs", Paragraphs())


@pytest.fixture
def root(small_dataset: Path, tmp_path: Path) -> Path:
    """Three videos of the generated data set, described in the new layout."""
    for name in ("a.m4v", "b.mov", "c.mp4"):
        (tmp_path / name).symlink_to(small_dataset / "videos" / "video0.mp4")
    sentences = {"a.m4v": ["One.", " Two."], "b.mov": ["Three."], "c.mp4": ["Four.", "Five."]}
    (tmp_path / "sentences.json").write_text(json.dumps(sentences))
    (tmp_path / "train.txt").write_text("b.mov\na.m4v\n")
    (tmp_path / "test.txt").write_text("c.mp4\n")
    return tmp_path


@pytest.mark.usefixtures("registered")
def test_a_layout_from_outside_is_loaded_and_checked(root):
    split = load_split(root, root, "train", layout="paragraphs", progress=False)
    assert split.captions == (Caption("b.mov", "Three."), Caption("a.m4v", "One. Two."))
    assert list(split.videos.items()) == [("b.mov", root / "b.mov"), ("a.m4v", root / "a.m4v")]
    assert check_split(root, root, "test", layout="paragraphs", progress=False).num_checked == 1
    assert layout("paragraphs").load(root, root, "test").captions[0].text == "Four. Five."
    (root / "c.mp4").unlink()
    with pytest.raises(BadVideosError, match=r"1 of 1 videos of split 'test'.*\n.*no such file"):
        load_split(root, root, "test", layout="paragraphs", progress=False)


@pytest.mark.usefixtures("registered")
def test_what_a_layout_does_not_have(root):
    with pytest.raises(ValueError, match=r"split must be one of \['train', 'test'\], got 'val'"):
        load_split(root, root, "val", layout="paragraphs")
    (root / "test.txt").write_text("")
    with pytest.raises(ValueError, match="split 'test' has no caption in"):
        load_split(root, root, "test", layout="paragraphs")
    with pytest.raises(ValueError, match=r"one of \['auto', .*'paragraphs', .*\], got 'scrolls'"):
        load_split(root, root, "test", layout="scrolls")


@pytest.mark.usefixtures("registered")
def test_a_name_is_given_once():
    with pytest.raises(ValueError, match="layout 'paragraphs' is registered already"):
        register_layout("paragraphs", MSRVTT())
    assert isinstance(layout("paragraphs"), Paragraphs)
    assert isinstance(layout("msrvtt"), MSRVTT)


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("MSRVTT_JSFUSION_test.csv", "msrvtt"),
        ("raw-captions.pkl", "msvd"),
        ("test_data.json", "didemo"),
        ("val_1.json", "activitynet"),
        ("LSMDC16_annos_val.csv", "lsmdc"),
        ("vatex_training_v1.0.json", "vatex"),
        ("captions.jsonl", "folder"),
        ("test.tsv", "folder"),
    ],
)
def test_a_folder_is_known_by_its_files(tmp_path, file, name):
    (tmp_path / "test_list.txt").touch()
    (tmp_path / "train.json").touch()
    with pytest.raises(AnnotationError, match="no layout known") as caught:
        layouts.detect_layout(tmp_path)
    assert all(f"{each}: " in str(caught.value) for each in layouts.all_layouts())
    (tmp_path / file).touch()
    assert layouts.layout_of("auto", tmp_path) is layout(name)
    assert layouts.layout_of("msvd", tmp_path) is layout("msvd")


def test_a_folder_that_may_be_two(tmp_path):
    for name in ("captions.csv", "val_1.json"):
        (tmp_path / name).touch()
    message = r"may be activitynet or folder; .* look for activitynet: val_1.json .*; folder: "
    with pytest.raises(AnnotationError, match=message):
        layouts.detect_layout(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"annotation folder .*nowhere does not exist"):
        layouts.detect_layout(tmp_path / "nowhere")


def test_auto_is_no_name():
    with pytest.raises(ValueError, match="'auto' is registered already"):
        register_layout("auto", MSRVTT())
