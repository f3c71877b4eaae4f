from __future__ import annotations

import faulthandler
import json
import logging
import multiprocessing
import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from garevla.data import (
    BadVideosError,
    Sampling,
    check,
    check_split,
    check_videos,
    decoding_processes,
    load_split,
)

needs_fork = pytest.mark.skipif(
    multiprocessing.get_start_method() != "fork", reason="patches reach forked processes only"
)


@pytest.fixture
def broken_dataset(small_dataset: Path, tmp_path: Path) -> Path:
    """A data set with one missing, one empty and one truncated training video."""
    root = tmp_path / "dataset"
    shutil.copytree(small_dataset, root)
    (root / "videos" / "video1.mp4").unlink()
    (root / "videos" / "video2.mp4").write_bytes(b"")
    content = (root / "videos" / "video5.mp4").read_bytes()
    (root / "videos" / "video5.mp4").write_bytes(content[: len(content) // 2])
    return root


def folders(root: Path) -> tuple[Path, Path]:
    return root / "annotations", root / "videos"


@pytest.mark.parametrize("num_workers", [0, 1, 3])
def test_every_bad_file_is_reported_in_order(broken_dataset, num_workers):
    videos = broken_dataset / "videos"
    paths = [videos / f"video{i}.mp4" for i in (5, 0, 2, 3, 1)]
    report = check_videos(paths, num_workers=num_workers, progress=False)
    assert report.num_checked == 5
    assert [path for path, _ in report.bad] == [paths[0], paths[2], paths[4]]
    reasons = [reason for _, reason in report.bad]
    assert "truncated" in reasons[0]
    assert "0 bytes" in reasons[1]
    assert "no such file" in reasons[2]


def test_nothing_to_check():
    assert check_videos([], progress=False).num_checked == 0


def test_damage_that_training_would_only_meet_now_and_then(tmp_path, write_video):
    path = write_video(tmp_path / "tail.mp4", 62, noise=20, faststart=True)
    path.write_bytes(path.read_bytes()[:-20])
    assert [bad.path for bad in check_videos([path], progress=False).bad] == [path]


def test_a_split_is_checked_with_its_missing_videos(broken_dataset):
    report = check_split(*folders(broken_dataset), "train-9k", progress=False)
    assert report.num_checked == 10
    assert {path.name for path, _ in report.bad} == {"video1.mp4", "video2.mp4", "video5.mp4"}
    assert check_split(*folders(broken_dataset), "test", progress=False).bad == ()


def test_loading_stops_and_names_all_bad_files(broken_dataset):
    with pytest.raises(BadVideosError, match="3 of 10 videos of split 'train-9k'") as caught:
        load_split(*folders(broken_dataset), "train-9k", progress=False)
    for name in ("video1.mp4: no such file", "video2.mp4: ", "video5.mp4: "):
        assert name in str(caught.value)
    assert len(caught.value.report.bad) == 3


def test_loading_skips_bad_files_when_told_to_and_says_how_many(broken_dataset, caplog):
    whole = json.loads((broken_dataset / "annotations" / "MSRVTT_data.json").read_text())
    gone = {"video1", "video2", "video5"}
    kept = [f"video{i}" for i in range(10) if f"video{i}" not in gone]
    with caplog.at_level(logging.WARNING):
        split = load_split(*folders(broken_dataset), "train-9k", bad_videos="skip", progress=False)
    assert list(split.videos) == kept
    captions = [s for s in whole["sentences"] if int(s["video_id"][5:]) < 10]
    lost = sum(s["video_id"] in gone for s in captions)
    assert len(split.captions) == len(captions) - lost
    assert "skipped 3 of 10 videos, which are missing or cannot be read" in caplog.text
    assert f"{lost} of {len(captions)} captions" in caplog.text


def test_nothing_left_is_an_error_even_when_skipping(broken_dataset):
    shutil.rmtree(broken_dataset / "videos")
    (broken_dataset / "videos").mkdir()
    with pytest.raises(BadVideosError, match="6 of 6"):
        load_split(*folders(broken_dataset), "test", bad_videos="skip", progress=False)


def test_a_good_split_is_loaded_whole(small_dataset):
    split = load_split(*folders(small_dataset), "test", progress=False)
    assert len(split.videos) == 6


def test_bad_arguments(small_dataset):
    with pytest.raises(ValueError, match="bad_videos"):
        load_split(*folders(small_dataset), "test", bad_videos="zeros")
    with pytest.raises(ValueError, match="timeout"):
        check_videos([], timeout=0)


def crash(path, sampling):
    if path.name.startswith("crash"):
        faulthandler.disable()  # pytest's would print a traceback for a crash that is wanted
        os.kill(os.getpid(), signal.SIGSEGV)


def hang(path, sampling):
    if path.name.startswith("hang"):
        time.sleep(60)


@needs_fork
@pytest.mark.parametrize("num_workers", [1, 3])
def test_a_crashing_decoder_is_a_bad_file(monkeypatch, num_workers):
    monkeypatch.setattr(decoding_processes, "read_frames", crash)
    monkeypatch.setattr(decoding_processes, "decode_all_frames", lambda path: 1)
    paths = [Path(name) for name in ("a", "crash1", "b", "crash2", "crash3", "c")]
    report = check_videos(paths, num_workers=num_workers, progress=False)
    assert report.num_checked == 6
    assert [path.name for path, _ in report.bad] == ["crash1", "crash2", "crash3"]
    assert all("crashed (exit code -11)" in reason for _, reason in report.bad)


@needs_fork
def test_a_decoder_that_never_ends_is_a_bad_file(monkeypatch):
    monkeypatch.setattr(decoding_processes, "read_frames", hang)
    monkeypatch.setattr(decoding_processes, "decode_all_frames", lambda path: 1)
    paths = [Path(name) for name in ("a", "hang", "b")]
    report = check_videos(paths, num_workers=2, timeout=0.5, progress=False)
    assert [(path.name, reason) for path, reason in report.bad] == [
        ("hang", "not decoded within 0.5 seconds")
    ]
    assert not multiprocessing.active_children()


@needs_fork
def test_an_error_that_is_not_the_files_fault_is_not_blamed_on_a_file(monkeypatch):
    def broken(path, sampling):
        raise ZeroDivisionError("a mistake in the program")

    monkeypatch.setattr(decoding_processes, "read_frames", broken)
    with pytest.raises(RuntimeError, match="a mistake in the program"):
        check_videos([Path("a")], progress=False)


def test_good_files_are_not_decoded_again_until_they_change(broken_dataset, tmp_path, monkeypatch):
    videos = broken_dataset / "videos"
    paths = [videos / f"video{i}.mp4" for i in (0, 2, 3)]
    cache = tmp_path / "notes" / "checked.json"
    decoded: list[list[str]] = []
    try_decoding = check.try_decoding

    def recorded(files, *rest):
        decoded.append([path.name for path in files])
        return try_decoding(files, *rest)

    monkeypatch.setattr(check, "try_decoding", recorded)

    def checked(**options) -> list[str]:
        report = check_videos(paths, cache=cache, progress=False, **options)
        assert report.num_checked == 3
        assert [path.name for path, _ in report.bad] == ["video2.mp4"]
        return decoded.pop()

    assert checked() == ["video0.mp4", "video2.mp4", "video3.mp4"]
    assert checked() == ["video2.mp4"]
    os.utime(paths[2], ns=(1, 1))
    assert checked() == ["video2.mp4", "video3.mp4"]
    assert checked(sampling=Sampling(3)) == ["video0.mp4", "video2.mp4", "video3.mp4"]
    cache.write_text('{"settings": ')
    assert checked() == ["video0.mp4", "video2.mp4", "video3.mp4"]
    assert [path.name for path in cache.parent.iterdir()] == ["checked.json"]


def test_progress_bar(small_dataset, capsys):
    check_videos([small_dataset / "videos" / "video0.mp4"])
    assert "1/1" in capsys.readouterr().err
