"""Cached frames: those of decoding to the bit, or an error."""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch

from garevla import cli
from garevla.data import (
    FrameCache,
    FrameCacheError,
    Sampling,
    VideoDataset,
    VideoTextDataset,
    VideoTransform,
    cache_frames,
    caching,
    collate_pairs,
    load_msrvtt,
    pyav_reader,
    read_frames,
)
from garevla.data.frame_sampling import TimeRange
from garevla.data.splits import AnnotationError, RetrievalSplit
from garevla.utils import locks
from tests.data.decoding import ask_here

SIZE = 24
SAMPLING = Sampling(5)
TRANSFORM = VideoTransform(SIZE, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
options = {"sampling": SAMPLING, "image_size": SIZE, "progress": False}


@pytest.fixture
def data(small_dataset: Path, tmp_path: Path) -> Path:
    """A copy of the data set, to be damaged."""
    return shutil.copytree(small_dataset, tmp_path / "data")


@pytest.fixture
def split(data: Path):
    return load_msrvtt(data / "annotations", data / "videos", "test")


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Videos are decoded in this process, which needs no seconds to begin; lists them."""
    done: list[str] = []

    def ask(*arguments):
        for job, answer in ask_here(*arguments):
            done.append(job["video_id"])
            yield job, answer

    monkeypatch.setattr(caching, "ask_processes", ask)
    return done


@pytest.fixture
def cached(split, tmp_path: Path, here) -> FrameCache:
    """The frames of the test split."""
    cache_frames(split, tmp_path / "cache", **options)
    here.clear()
    return FrameCache(tmp_path / "cache", SIZE)


def check_all_cached(split, folder: Path) -> None:
    cache = FrameCache(folder, SIZE)
    for video_id, path in split.videos.items():
        frames = TRANSFORM.crop(read_frames(path, SAMPLING))
        assert torch.equal(cache.read(video_id, path, SAMPLING), frames)


# -------------------------------------------------------------------------- the same frames


@pytest.mark.parametrize("sampling", [Sampling(10), Sampling(3, "resample", 2.0)])
@pytest.mark.parametrize("keep", [False, True])
def test_items_and_batches_are_those_of_decoding(split, tmp_path, here, sampling, keep):
    cache_frames(split, tmp_path / "cache", **{**options, "sampling": sampling})
    plain, cached = (
        [
            kind(split, TRANSFORM, sampling=sampling, keep_in_memory=keep, frame_cache=cache)
            for kind in (VideoTextDataset, VideoDataset)
        ]
        for cache in (None, tmp_path / "cache")
    )
    for one, other in zip(plain, cached, strict=True):
        # The second time from memory, where it is kept.
        for index in (*range(len(one)), *range(len(one))):
            for a, b in zip(one[index], other[index], strict=True):
                assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b

    collate = functools.partial(collate_pairs, tokenize=lambda texts: torch.zeros(len(texts), 1))
    loaders = [
        torch.utils.data.DataLoader(pairs, batch_size=3, collate_fn=collate, num_workers=count)
        for pairs, count in ((plain[0], 0), (cached[0], 2))
    ]
    for one, other in zip(*loaders, strict=True):
        assert torch.equal(one.video, other.video)
        assert torch.equal(one.frame_mask, other.frame_mask)
        assert one.video_ids == other.video_ids


def test_ids_of_any_kind_have_files_of_their_own(split, tmp_path, here):
    (path,) = list(split.videos.values())[:1]
    ids = ["a", "A", "../a", "/a", "a/b", "x" * 5000, "", "\0", "日本", "a.", "CON"]
    cache_frames(dict.fromkeys(ids, path), tmp_path / "cache", **options)
    cache = FrameCache(tmp_path / "cache", SIZE)
    paths = {str(cache.path_of(video_id)).lower() for video_id in ids}
    assert len(paths) == len(ids)
    for video_id in ids:
        assert cache.find(video_id, SAMPLING).video_id == video_id
        assert cache.folder in cache.path_of(video_id).resolve().parents


clips = Path(os.environ.get("GAREVLA_ANNOTATIONS", "")) / "videos"


@pytest.mark.slow
@pytest.mark.skipif(
    "GAREVLA_ANNOTATIONS" not in os.environ or not clips.is_dir(),
    reason="GAREVLA_ANNOTATIONS names no folder with real clips",
)
def test_real_clips_by_every_reader_and_cached(tmp_path, here, monkeypatch):
    videos = {path.name: path for path in sorted(clips.iterdir())}
    assert len(videos) == 12
    report = cache_frames(videos, tmp_path, sampling=Sampling(), progress=False)
    assert (report.num_new, report.check.bad) == (12, ())
    crop = VideoTransform(224, (0, 0, 0), (1, 1, 1)).crop
    frames = {name: read_frames(path) for name, path in videos.items()}
    monkeypatch.setitem(sys.modules, "decord", None)
    for name, path in videos.items():
        decoded = pyav_reader.decode(path, Sampling(), pyav_reader.list_packets(path))
        np.testing.assert_array_equal(decoded.frames, frames[name])
        np.testing.assert_array_equal(read_frames(path), frames[name])
        cached = FrameCache(tmp_path, 224).read(name, path, Sampling())
        assert torch.equal(cached, crop(frames[name]))


# ------------------------------------------------------------------------- stop and go on


KILLED = """
import os, signal, sys
from pathlib import Path
from garevla.data import Sampling, cache_frames, caching
ask_processes = caching.ask_processes
def until_killed(*arguments):
    for number, found in enumerate(ask_processes(*arguments)):
        if number == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        yield found
caching.ask_processes = until_killed
videos = {path.stem: path for path in sorted(Path(sys.argv[1]).iterdir())}
cache_frames(videos, sys.argv[2], sampling=Sampling(5), image_size=24, progress=False)
"""


def test_a_killed_call_goes_on_to_the_same_end(data, split, tmp_path, here):
    folder = tmp_path / "cache"
    command = [sys.executable, "-c", KILLED, str(data / "videos"), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    written = {path: path.stat().st_mtime_ns for path in folder.glob("*/*.safetensors")}
    assert 3 <= len(written) <= 5
    # As if killed while writing.
    half = next(iter(written)).with_suffix(".safetensors.0123456789abcdef.tmp")
    half.write_bytes(b"half")

    videos = {path.stem: path for path in sorted((data / "videos").iterdir())}
    report = cache_frames(videos, folder, **options)
    assert (report.num_new, report.num_kept) == (16 - len(written), len(written))
    assert {path: path.stat().st_mtime_ns for path in written} == written
    assert not list(folder.glob("*/*.tmp"))
    check_all_cached(split, folder)


def test_two_writers_are_refused(split, tmp_path, here, monkeypatch):
    monkeypatch.setattr(locks, "_SECONDS", 0.01)
    with (
        locks.lock_folder(tmp_path / "cache"),
        pytest.raises(locks.InUseError, match=r"another process is writing into .*cache"),
    ):
        cache_frames(split, tmp_path / "cache", **options)
    assert here == []


def test_a_disk_that_takes_no_more_is_said_and_the_call_goes_on_later(split, tmp_path):
    folder = tmp_path / "cache"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(OSError, match=r"\.safetensors cannot be written: File too") as caught:
            cache_frames(split, folder, **options)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.errno == errno.EFBIG
    assert not [path for path in folder.glob("*/*") if path.is_file()]


@pytest.mark.parametrize("free", [10**12, 10**4])
def test_the_size_is_said_beforehand(split, tmp_path, here, monkeypatch, caplog, free):
    usage = namedtuple("usage", "free")(free)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    monkeypatch.setattr(caching, "ask_processes", lambda *arguments: iter(()))
    with caplog.at_level(logging.INFO), contextlib.suppress(KeyError):
        cache_frames(split, tmp_path, **options)
    (record,) = caplog.records
    assert record.levelno == (logging.INFO if free > 10**6 else logging.WARNING)
    assert "6 of 6 videos to be decoded, at most 0.05 MiB" in record.getMessage()
    assert ("may not be enough" in record.getMessage()) == (free < 10**6)


# --------------------------------------------------------------------------- what does not fit


def test_bad_files_are_reported_and_not_written(data, split, tmp_path, here):
    (data / "videos" / "video11.mp4").write_bytes(b"")
    content = (data / "videos" / "video13.mp4").read_bytes()
    (data / "videos" / "video13.mp4").write_bytes(content[: len(content) // 2])
    report = cache_frames(split, tmp_path / "cache", **options)
    assert (report.num_new, report.num_kept, report.check.num_checked) == (4, 0, 6)
    assert [path.name for path, _ in report.check.bad] == ["video11.mp4", "video13.mp4"]
    assert "0 bytes" in report.check.bad[0].reason
    assert "truncated" in report.check.bad[1].reason
    cache = FrameCache(tmp_path / "cache", SIZE)
    assert not cache.path_of("video11").exists()
    assert not cache.path_of("video13").exists()


def load(cache: FrameCache, data: Path, **changes):
    arguments = {"split": "test", "sampling": SAMPLING, **changes}
    return cache.load_split(data / "annotations", data / "videos", **arguments)


def test_a_split_of_the_cache_is_the_split(cached, data, split):
    assert load(cached, data) == split


def test_videos_that_are_not_in_the_cache(cached, data, split, caplog):
    for video_id in ("video11", "video13"):
        cached.path_of(video_id).unlink()
    message = r"has no frames of 2 of 6 videos of split 'test': 'garevla cache' .* video11, video13"
    with pytest.raises(FrameCacheError, match=message):
        load(cached, data)
    with caplog.at_level(logging.WARNING):
        assert load(cached, data, bad_videos="skip") == split.without(["video11", "video13"])
    assert "skipped 2 of 6 videos, which are not in the frame cache" in caplog.text
    with pytest.raises(FrameCacheError, match="has no frames of video 'video11': 'garevla cache'"):
        VideoDataset(split, TRANSFORM, sampling=SAMPLING, frame_cache=cached.folder)[1]
    shutil.rmtree(cached.folder)
    with pytest.raises(FrameCacheError, match="has no frames of 6 of 6 videos"):
        load(cached, data, bad_videos="skip")


def test_video_files_need_not_be_there(cached, data, split, caplog):
    videos = VideoDataset(split, TRANSFORM, sampling=SAMPLING)
    expected = [videos[index] for index in range(len(videos))]
    for path in (data / "videos").iterdir():
        path.unlink()
    with caplog.at_level(logging.INFO):
        found = load(cached, data)
    assert found == split
    assert "6 of 6 videos of split 'test' have no file in" in caplog.text
    videos = VideoDataset(found, TRANSFORM, sampling=SAMPLING, frame_cache=cached.folder)
    assert all(torch.equal(videos[index].video, item.video) for index, item in enumerate(expected))


@pytest.mark.parametrize("change", ["size", "time", "name"])
def test_a_video_that_has_changed_is_an_error_and_is_cached_anew(cached, data, split, here, change):
    path = split.videos["video12"]
    if change == "size":
        path.write_bytes(split.videos["video13"].read_bytes())
    elif change == "time":
        os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    else:
        path.rename(path.with_suffix(".mov"))
    split = load_msrvtt(data / "annotations", data / "videos", "test")
    path = split.videos["video12"]
    message = f"1 of 6 videos cannot be used:\n  .*another file than {path} .*'garevla cache' again"
    with pytest.raises(FrameCacheError, match=message):
        load(cached, data)
    with pytest.raises(FrameCacheError, match=f"another file than {path} "):
        VideoDataset(split, TRANSFORM, sampling=SAMPLING, frame_cache=cached.folder)[2]
    report = cache_frames(split, cached.folder, **options)
    assert (report.num_new, report.num_kept, here) == (1, 5, ["video12"])
    check_all_cached(split, cached.folder)
    # Nothing is left of what a bad file once was.
    path.write_bytes(b"")
    assert cache_frames(split, cached.folder, **options).check.bad[0].path == path
    assert not cached.path_of("video12").exists()


@pytest.mark.parametrize(
    ("changes", "image_size", "message"),
    [
        ({"sampling": Sampling(4)}, SIZE, "max_frames 5, not 4; .* garevla cache --max_frames 4 "),
        ({"sampling": Sampling(5, "resample")}, SIZE, "sampling 'grid', not 'resample'"),
        ({"sampling": Sampling(5, frames_per_second=2.0)}, SIZE, "frames_per_second 1.0, not 2.0"),
        ({}, 32, "image_size 24, not 32; .* --image_size 32"),
    ],
)
def test_frames_of_other_settings_are_refused(
    cached, data, split, here, changes, image_size, message
):
    other = FrameCache(cached.folder, image_size)
    with pytest.raises(FrameCacheError, match=message):
        load(other, data, **changes)
    with pytest.raises(FrameCacheError, match=message):
        other.read("video10", split.videos["video10"], **{"sampling": SAMPLING, **changes})
    with pytest.raises(FrameCacheError, match=message):
        cache_frames(split, cached.folder, **{**options, "image_size": image_size, **changes})
    assert here == []
    check_all_cached(split, cached.folder)


# ------------------------------------------------------------------------------- damaged files


def damages(content: bytes):
    """Each byte of the header and some of the frames flipped; ends cut off, or added."""
    generator = random.Random(0)
    header = 8 + int.from_bytes(content[:8], "little")
    for place in (*range(header), *generator.sample(range(header, len(content)), 100)):
        changed = bytearray(content)
        changed[place] ^= generator.choice((1, 0x80, 0xFF, generator.randrange(1, 256)))
        yield bytes(changed)
    for length in (0, 1, 7, 8, 9, header // 2, header, header + 1, len(content) - 1):
        yield content[:length]
    yield content + b"\0"
    yield bytes(len(content))
    # Two frames that have changed their places.
    frame = 3 * SIZE * SIZE
    yield content[:header] + content[header + frame :] + content[header : header + frame]


def test_damaged_files_never_give_wrong_frames(cached, split, tmp_path):
    path = cached.path_of("video10")
    file, content = split.videos["video10"], path.read_bytes()
    frames = cached.read("video10", file, SAMPLING).clone()
    errors = 0
    for number, damaged in enumerate(damages(content)):
        path.write_bytes(damaged)
        try:
            found = cached.read("video10", file, SAMPLING)
        except FrameCacheError as error:
            errors += str(path) in str(error)
        else:
            # White space of the header for other white space, at most.
            assert torch.equal(found, frames), number
    assert errors > 0.99 * number


def test_damage_is_found_and_replaced_when_told_to_look_for_it(cached, data, split, here):
    path = cached.path_of("video10")
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    cut = cached.path_of("video11")
    cut.write_bytes(cut.read_bytes()[:-1])
    with pytest.raises(FrameCacheError, match=f"{cut}: damaged"):
        load(cached, data)
    # A missing end shows by itself.
    assert cache_frames(split, cached.folder, **options).num_new == 1
    load(cached, data)
    videos = VideoDataset(split, TRANSFORM, sampling=SAMPLING, frame_cache=cached.folder)
    for num_workers in (0, 1):
        loader = torch.utils.data.DataLoader(videos, num_workers=num_workers)
        with pytest.raises(FrameCacheError, match=f"{path}: damaged.* --verify true"):
            next(iter(loader))
    assert cache_frames(split, cached.folder, verify=True, **options).num_new == 1
    assert here == ["video11", "video10"]
    check_all_cached(split, cached.folder)


# -------------------------------------------------------------------------------- the command


def test_the_command(data, tmp_path, here, capsys):
    folder = tmp_path / "cache"
    flags = [f"--output={folder}", f"--video_dir={data / 'videos'}", "--image_size=24"]
    (data / "videos" / "video11.mp4").unlink()
    (data / "videos" / "video13.mp4").write_bytes(b"")
    annotations = f"--annotation_dir={data / 'annotations'}"
    assert cli.main(["cache", *flags, annotations, "--splits", "test"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == f"4 videos cached, 0 were there, 2 are bad: {folder}"
    assert any("video11.mp4: no such file in" in line for line in lines)
    assert any("video13.mp4: the file is empty" in line for line in lines)
    (data / "videos" / "video13.mp4").unlink()
    assert cli.main(["cache", *flags]) == 0
    assert capsys.readouterr().out == f"10 videos cached, 4 were there, 0 are bad: {folder}\n"
    # Another number of frames, into the same folder.
    assert cli.main(["cache", *flags, "--max_frames=4"]) == 2
    assert "the frames were taken with max_frames 12, not 4" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_size": 0}, "image_size must be positive, got 0"),
        ({"timeout": 0}, "timeout must be positive, got 0"),
    ],
)
def test_bad_arguments(split, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        cache_frames(split, tmp_path, **{**options, **change})


def test_a_folder_without_videos(tmp_path):
    from garevla.data import CacheConfig

    with pytest.raises(AnnotationError, match="no video"):
        caching.run_caching(CacheConfig(video_dir=tmp_path, output=tmp_path / "cache"))
    with pytest.raises(ValueError, match="image_size must be at least 1, got 0"):
        CacheConfig(video_dir=tmp_path, output=tmp_path, image_size=0)


def test_parts_of_a_file_are_cached_each_by_itself(split, tmp_path, here):
    (path,) = list(split.videos.values())[:1]
    ranges = {"first": TimeRange(0, 3), "last": TimeRange(5, 8), "beyond": TimeRange(99, 100)}
    parts = RetrievalSplit((), {"whole": path, **dict.fromkeys(ranges, path)}, ranges)
    report = cache_frames(parts, tmp_path / "cache", **options)
    assert (report.num_new, len(report.check.bad)) == (3, 1)
    assert "no frame from second 99" in report.check.bad[0].reason
    cache = FrameCache(tmp_path / "cache", SIZE)
    for video_id in ("whole", "first", "last"):
        sampling = parts.sampling_of(video_id, SAMPLING)
        frames = TRANSFORM.crop(read_frames(path, sampling))
        assert torch.equal(cache.read(video_id, path, sampling), frames)
        items = VideoDataset(
            parts.without(["beyond"]), TRANSFORM, sampling=SAMPLING, frame_cache=cache.folder
        )
        item = items[items.video_ids.index(video_id)]
        assert torch.equal(item.video[: len(frames)], TRANSFORM.normalize(frames))
    with pytest.raises(FrameCacheError, match=r"time_range \[0, 3\], not \[0, 4\]"):
        cache.read("first", path, SAMPLING.within(TimeRange(0, 4)))
