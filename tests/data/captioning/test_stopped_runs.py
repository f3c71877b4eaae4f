"""A run that was stopped goes on to the same end."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from garevla.data import Sampling
from garevla.data.captioning import CaptioningError
from tests.data.captioning.journals import journal_of, journalled


def test_a_run_stopped_twice_goes_on_to_the_same_end(
    caption, stop_at, monkeypatch, tmp_path, capsys
):
    caption(tmp_path / "whole.json")
    output = tmp_path / "parts.json"
    stop_at("video4")
    with pytest.raises(KeyboardInterrupt):
        caption(output)
    assert journalled(output) == ["video3", "video0"]
    # As if killed while writing the second.
    journal_of(output).write_bytes(journal_of(output).read_bytes()[:-20])
    monkeypatch.undo()

    # What is done is not read again.
    stop_at("video3")
    stop_at("video8")
    with pytest.raises(KeyboardInterrupt):
        caption(output)
    assert journalled(output) == ["video3", "video0", "video4"]
    monkeypatch.undo()

    stop_at("video0")
    caption(output, batch_size=5, progress=True)
    assert output.read_bytes() == (tmp_path / "whole.json").read_bytes()
    assert not journal_of(output).exists()
    assert "captioning: 100%" in capsys.readouterr().err


def test_a_killed_process_goes_on_to_the_same_end(caption, models, videos, tmp_path):
    caption(tmp_path / "whole.json")
    output = tmp_path / "killed.json"
    script = f"""
import os, pathlib, signal
from garevla.data import captioning
read = captioning.read_frames
def read_or_die(path, sampling):
    if path.stem == "video4":
        os.kill(os.getpid(), signal.SIGKILL)
    return read(path, sampling)
captioning.read_frames = read_or_die
captioning.caption_videos(
    { ({i: str(path) for i, path in videos.items()})!r}, {str(output)!r},
    model={models("blip")!r}, num_beams=2, max_new_tokens=5, num_workers=0, progress=False,
)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode < 0, done.stderr
    assert journalled(output) == ["video3", "video0"]
    assert not output.exists()
    caption(output)
    assert output.read_bytes() == (tmp_path / "whole.json").read_bytes()


def test_other_settings_cannot_go_on(caption, models, stop_at, tmp_path):
    output = tmp_path / "out.json"
    stop_at("video8")
    with pytest.raises(KeyboardInterrupt):
        caption(output)
    for changes, message in (
        ({"sampling": Sampling(max_frames=4)}, "max_frames: 12 -> 4"),
        (
            {"num_beams": 1, "sampling": Sampling(mode="resample")},
            "sampling: 'grid' -> 'resample', num_beams: 2",
        ),
        ({"model": models("git")}, "model: .*blip' -> .*git'"),
    ):
        with pytest.raises(CaptioningError, match=f"other settings .*{message}.* remove it"):
            caption(output, **changes)
    assert len(journalled(output)) == 3


def test_a_run_stopped_before_the_first_video_binds_to_nothing(caption, stop_at, tmp_path):
    output = tmp_path / "out.json"
    stop_at("video3")
    for max_frames in (12, 2):
        with pytest.raises(KeyboardInterrupt):
            caption(output, sampling=Sampling(max_frames))
        (line,) = journal_of(output).read_text().splitlines()
        assert json.loads(line)["settings"]["max_frames"] == max_frames


def test_a_damaged_journal_is_named_with_its_line(caption, stop_at, tmp_path):
    output = tmp_path / "out.json"
    stop_at("video8")
    with pytest.raises(KeyboardInterrupt):
        caption(output)
    lines = journal_of(output).read_text().splitlines(keepends=True)
    for number, damaged in ((1, "{}\n"), (3, "???\n"), (3, "[]\n")):
        journal_of(output).write_text("".join([*lines[: number - 1], damaged, *lines[number:]]))
        with pytest.raises(CaptioningError, match=rf"partial\.jsonl, line {number}: damaged"):
            caption(output)


def test_a_video_that_has_changed_is_captioned_anew(
    caption, videos, stop_at, monkeypatch, tmp_path
):
    copies = {i: Path(shutil.copy(path, tmp_path)) for i, path in videos.items()}
    output = tmp_path / "out.json"
    stop_at("video8")
    with pytest.raises(KeyboardInterrupt):
        caption(output, videos=copies)
    monkeypatch.undo()
    shutil.copy(videos["video4"], copies["video0"])
    caption(output, videos=copies)
    found = json.loads(output.read_text())
    assert list(found) == list(videos)
    assert found["video0"] == found["video4"] != found["video3"]


def test_a_video_that_has_become_bad_loses_its_captions(caption, videos, stop_at, tmp_path):
    copies = {i: Path(shutil.copy(path, tmp_path)) for i, path in videos.items()}
    output = tmp_path / "out.json"
    stop_at("video8")
    with pytest.raises(KeyboardInterrupt):
        caption(output, videos=copies)
    copies["video0"].unlink()
    left = {i: path for i, path in copies.items() if i != "video8"}
    caption(output, videos=left, bad_videos="skip")
    assert list(json.loads(output.read_text())) == ["video3", "video4"]


def test_only_videos_asked_for_are_written(caption, videos, stop_at, tmp_path):
    output = tmp_path / "out.json"
    stop_at("video8")
    with pytest.raises(KeyboardInterrupt):
        caption(output)
    report = caption(output, videos={i: videos[i] for i in ("video4", "video3")})
    assert list(json.loads(output.read_text())) == ["video4", "video3"]
    assert report.num_videos == 2


def test_a_finished_file_is_not_touched(caption, tmp_path):
    (tmp_path / "out.json").write_text("mine")
    with pytest.raises(FileExistsError, match=r"out\.json exists already"):
        caption(tmp_path / "out.json", model="any")
    assert (tmp_path / "out.json").read_text() == "mine"
    assert not journal_of(tmp_path / "out.json").exists()
