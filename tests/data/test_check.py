from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import av
import pytest

from garevla.data import (
    BadVideosError,
    Sampling,
    check,
    check_split,
    check_videos,
    decoding_processes,
    load_msrvtt,
    load_split,
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
    for name in ("video1.mp4: no such file in ", "video2.mp4: ", "video5.mp4: "):
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
    with pytest.raises(BadVideosError, match="6 of 6 videos of split 'test'") as caught:
        load_split(*folders(broken_dataset), "test", bad_videos="skip", progress=False)
    _, only = str(caught.value).splitlines()
    assert only.startswith(f"  6 files, no such file in {broken_dataset / 'videos'}: ")


def test_ids_that_lead_out_of_the_folder_are_not_followed(broken_dataset):
    annotations, videos = folders(broken_dataset)
    (broken_dataset / "outside.mp4").write_bytes((videos / "video0.mp4").read_bytes())
    with (annotations / "MSRVTT_JSFUSION_test.csv").open("a") as file:
        file.write("ret9,msr9,../outside,a video that is elsewhere\n")
        file.write(f"ret9,msr9,{broken_dataset / 'outside'},a video that is elsewhere\n")
    report = check_split(annotations, videos, "test", progress=False)
    assert [bad.reason for bad in report.bad] == [f"no such file in {videos}"] * 2
    split = load_split(annotations, videos, "test", bad_videos="skip", progress=False)
    assert split == load_msrvtt(annotations, videos, "test", missing="skip")
    assert all(path.parent == videos for path in split.videos.values())


def test_files_of_unknown_length_are_good_and_said(broken_dataset, caplog, tmp_path):
    annotations, videos = folders(broken_dataset)
    source = videos / "video10.mp4"
    with av.open(str(source)) as old, av.open(str(videos / "video10.ts"), "w") as new:
        copy = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(old.streams.video[0]):
            if packet.size:
                packet.stream = copy
                new.mux(packet)
    source.unlink()
    with caplog.at_level(logging.INFO):
        # The second time from the note.
        for _ in range(2):
            options = {"progress": False, "cache": tmp_path / "checked.json"}
            assert len(load_split(annotations, videos, "test", **options).videos) == 6
    messages = [message for message in caplog.messages if "how long they are" in message]
    assert len(messages) == 2
    assert all("1 of 6 videos of split 'test' do not say" in message for message in messages)


def test_a_good_split_is_loaded_whole(small_dataset):
    split = load_split(*folders(small_dataset), "test", progress=False)
    assert len(split.videos) == 6


def test_bad_arguments(small_dataset):
    with pytest.raises(ValueError, match="bad_videos"):
        load_split(*folders(small_dataset), "test", bad_videos="zeros")
    with pytest.raises(ValueError, match="timeout"):
        check_videos([], timeout=0)


WORKER = """
import json, os, signal, sys, time
print("{}", flush=True)
for line in sys.stdin:
    name = json.loads(line)
    if name.startswith("crash"):
        os.kill(os.getpid(), signal.SIGSEGV)
    if name.startswith("hang"):
        time.sleep(60)
    answer = {"reason": None, "length_is_known": True}
    print(json.dumps({"failure": name} if "mistake" in name else {"answer": answer}), flush=True)
"""


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen[bytes]]:
    """All processes that are begun; they crash or hang where a file's name says so."""
    started: list[subprocess.Popen[bytes]] = []

    class Recorded(subprocess.Popen):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            started.append(self)

    monkeypatch.setattr(subprocess, "Popen", Recorded)
    command = [sys.executable, "-S", "-c", WORKER]
    monkeypatch.setattr(decoding_processes, "_command", lambda function, settings: command)
    return started


@pytest.mark.parametrize("num_workers", [1, 3])
def test_a_crashing_decoder_is_a_bad_file(processes, num_workers):
    paths = [Path(name) for name in ("a", "crash1", "b", "crash2", "crash3", "c")]
    report = check_videos(paths, num_workers=num_workers, progress=False)
    assert report.num_checked == 6
    assert [path.name for path, _ in report.bad] == ["crash1", "crash2", "crash3"]
    assert all("crashed (exit code -11)" in reason for _, reason in report.bad)
    assert all(process.poll() is not None for process in processes)


def test_a_decoder_that_never_ends_is_a_bad_file(processes):
    paths = [Path(name) for name in ("a", "hang", "b")]
    report = check_videos(paths, num_workers=2, timeout=0.5, progress=False)
    assert [(path.name, reason) for path, reason in report.bad] == [
        ("hang", "not decoded within 0.5 seconds")
    ]
    assert all(process.poll() is not None for process in processes)


def test_an_error_that_is_not_the_files_fault_is_not_blamed_on_a_file(processes):
    with pytest.raises(RuntimeError, match="decoding a mistake in the program failed"):
        check_videos([Path("a mistake in the program"), Path("hang")], progress=False)
    assert all(process.poll() is not None for process in processes)


def test_a_process_that_cannot_begin_says_why(monkeypatch):
    command = [sys.executable, "-c", "raise SystemExit('no such package')"]
    monkeypatch.setattr(decoding_processes, "_command", lambda function, settings: command)
    with pytest.raises(RuntimeError, match="no process that decodes can be started"):
        check_videos([Path("a")], progress=False)


def test_a_script_without_guard_that_has_decoded_with_threads_before(small_dataset, tmp_path):
    pytest.importorskip("decord")
    script = tmp_path / "script.py"
    script.write_text(f"""
import gc, sys
sys.path[:] = {sys.path!r}
import av, decord
from pathlib import Path
from garevla.data import check_videos
paths = sorted(Path({str(small_dataset / "videos")!r}).iterdir())
open_ones = [av.open(str(path)) for path in paths[:4]]
for container in open_ones:
    container.streams.video[0].thread_type = "AUTO"
    next(container.decode(video=0))
readers = [decord.VideoReader(str(path), num_threads=2) for path in paths[:4]]
report = check_videos(paths, num_workers=2, progress=False)
del open_ones, readers
gc.collect()
print(report.num_checked, len(report.bad), "torch" in sys.modules)
""")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout.split()[:2], done.stderr) == (0, ["16", "0"], "")


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
