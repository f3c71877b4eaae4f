"""`garevla datasets`: what is understood, and what a folder holds."""

from __future__ import annotations

from pathlib import Path

import pytest

from garevla.cli import main
from garevla.data.layouts import all_layouts


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "captions.csv").write_text(
        "video,caption,split,start,end\n"
        "a,a dog,train,,\na,a dog,train,,\nb,a cat,train,,\nc,a dog,test,,\nd,a bird,val,1,2\n"
    )
    (tmp_path / "videos").mkdir()
    for name in ("a.mp4", "c.mp4", "d.mp4", "e.mp4"):
        (tmp_path / "videos" / name).touch()
    return tmp_path


def test_counts_and_notes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--annotation_dir", str(folder), "--video_dir", str(folder / "videos")]
    assert main(["datasets", *flags]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{folder}: layout folder",
        "split     videos  captions",
        "train          2         3",
        "val            1         1  (parts of videos)",
        "test           1         1",
        "in all         3         4",
        "train: 1 of 3 captions repeat one of the same video, such as 'a dog' of 'a'",
        f"train: 1 of 2 videos have no file in {folder / 'videos'}: b",
        f"1 of 4 video files are of no split: {folder / 'videos' / 'e.mp4'}",
    ]
    assert main(["datasets", str(folder)]) == 0
    assert "no file" not in capsys.readouterr().out


def test_splits_that_are_not_there_or_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "train.csv").write_text("video,caption\na,a dog\n")
    (tmp_path / "test.csv").write_text("video\na\n")
    assert main(["datasets", str(tmp_path)]) == 1
    output = capsys.readouterr().out
    assert "train         1         1\n" in output
    assert f"val: not there, annotation file {tmp_path / 'val'}.csv does not exist" in output
    assert f"test: cannot be read, {tmp_path / 'test.csv'} has no column 'caption'" in output


def test_all_layouts_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["datasets"]) == 0
    output = capsys.readouterr().out
    for name, layout in all_layouts().items():
        assert f"\n{name}: " in f"\n{output}"
        assert ", ".join(layout.splits) in output
        assert f"garevla train --config gare_{name} " in output
    assert "`" not in output


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["nowhere"], "annotation folder nowhere does not exist"),
        ([".", "--layout", "scrolls"], "layout must be one of ['auto', "),
    ],
)
def test_errors_are_told_in_a_line(
    flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["datasets", *flags]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("flags", [["a", "--annotation_dir", "b"], ["--video_dir", "a"]])
def test_flags_that_do_not_fit(flags: list[str]) -> None:
    with pytest.raises(SystemExit):
        main(["datasets", *flags])
