from __future__ import annotations

import json
import os
import shutil
import threading
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch

from garevla.data.dataset import VideoDataset
from garevla.data.frame_sampling import Sampling
from garevla.data.splits import Caption, RetrievalSplit
from garevla.evaluation import encode_split, score_matrix
from garevla.search import Library, LibraryError
from garevla.search.store import Store
from garevla.training.config import ConfigError
from garevla.utils.locks import InUseError, lock_folder
from tests.search.test_store import contents

ODD_NAME = "strange – 'name' \"%s\"\n$x$ 視頻 \udcff.mp4"


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory, write_clip) -> Path:
    """A video of 8 seconds, one of 1, one in a folder with an odd name, and three bad ones."""
    folder = tmp_path_factory.mktemp("clips")
    write_clip(folder / "long.mp4", 64)
    write_clip(folder / "short.mkv", 8)
    (folder / "a folder").mkdir()
    write_clip(folder / "odd.mp4", 20)
    (folder / "odd.mp4").rename(folder / "a folder" / ODD_NAME)
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "text.avi").write_text("no video")
    content = (folder / "long.mp4").read_bytes()
    (folder / "cut.mp4").write_bytes(content[: len(content) // 2])
    (folder / "notes.txt").write_text("not looked at")
    (folder / ".hidden.mp4").write_bytes(content)
    (folder / "gone.mp4").symlink_to(folder / "nowhere.mp4")
    return folder


def test_a_folder_and_all_that_may_change_in_it(clips, index, tmp_path, write_clip):
    videos, output = tmp_path / "videos", tmp_path / "library.garevla"
    shutil.copytree(clips, videos, symlinks=True)
    report = index(videos, output)
    assert (report.added, report.num_videos, report.num_segments) == (7, 3, 5 + 1 + 2)
    reasons = {path.name: reason for path, reason in report.bad}
    assert sorted(reasons) == ["cut.mp4", "empty.mp4", "gone.mp4", "text.avi"]
    assert "truncated" in reasons["cut.mp4"]
    assert "0 bytes" in reasons["empty.mp4"]
    assert "no such file" in reasons["gone.mp4"]
    first = contents(Store(output))
    assert sorted(first) == sorted(["long.mp4", "short.mkv", f"a folder/{ODD_NAME}"])
    ranges = [(0, 2), (1.5, 3.5), (3, 5), (4.5, 6.5), (6, 8)]
    np.testing.assert_allclose(first["long.mp4"][1], ranges, atol=1e-6)
    np.testing.assert_allclose(first["short.mkv"][1], [(0, 1)], atol=1e-6)
    assert not (output / "work").exists()

    # Nothing has changed: nothing is decoded, nothing is written.
    version = Store(output).state["version"]
    report = index(videos, output)
    assert (report.unchanged, report.added, len(report.bad)) == (7, 0, 4)
    assert Store(output).state["version"] == version

    # Another time of change, the same content; a moved file; a removed one; a new one.
    os.utime(videos / "long.mp4", ns=(1, 1))
    (videos / "short.mkv").rename(videos / "a folder" / "moved.mkv")
    (videos / "text.avi").unlink()
    write_clip(videos / "new.mp4", 4)
    # A bad file that has become good, and a good one that has become bad.
    shutil.copy(videos / "new.mp4", videos / "cut.mp4")
    (videos / "a folder" / ODD_NAME).write_bytes(b"no video any more")
    report = index(videos, output)
    assert (report.added, report.changed, report.removed, report.moved) == (1, 2, 1, 1)
    assert report.unchanged == 3
    bad = {path.name for path, _ in report.bad}
    assert bad == {ODD_NAME, "empty.mp4", "gone.mp4"}
    second = contents(Store(output))
    assert set(second) == {"long.mp4", "a folder/moved.mkv", "new.mp4", "cut.mp4"}
    assert second["a folder/moved.mkv"][1:] == first["short.mkv"][1:]
    assert second["long.mp4"][1:] == first["long.mp4"][1:]
    assert second["cut.mp4"][1:] == second["new.mp4"][1:]

    # What an update has made is what a new index would be.
    index(videos, tmp_path / "again")
    assert contents(Store(tmp_path / "again")) == second

    # A damaged part is found, and indexed again.
    store = Store(output)
    record = next(record for record in store.videos.values() if record.name == "new.mp4")
    path = next(output.glob("frames-*.bin"))
    damaged = bytearray(path.read_bytes())
    damaged[record.first_frame * 2 * store.dim] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(LibraryError, match=r"frames.*'new\.mp4'.*--verify"):
        contents(Store(output))
    assert index(videos, output, verify=True).damaged == 1
    assert contents(Store(output)) == second


def test_no_video_at_all(index, tmp_path):
    (tmp_path / "videos").mkdir()
    report = index(tmp_path / "videos", tmp_path / "library")
    assert (report.num_videos, report.bad) == (0, ())
    library = Library.open(tmp_path / "library", device="cpu")
    assert library.search("anything") == []
    assert library.search("anything", exact=True) == []
    assert library.status()["videos"] == 0


def test_only_bad_videos(index, tmp_path):
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "bad.mp4").write_bytes(b"no video")
    assert len(index(tmp_path / "videos", tmp_path / "library").bad) == 1
    library = Library.open(tmp_path / "library", device="cpu")
    assert library.search("anything") == []
    assert [bad["path"] for bad in library.status()["bad"]] == ["bad.mp4"]


@pytest.mark.parametrize("resize_mode", ["shortest", "squash"])
def test_whole_videos_have_the_scores_of_evaluation(index, tmp_path, write_clip, resize_mode):
    tiny = json.loads((files("garevla.encoders") / "configs" / "tiny.json").read_text())
    config = {"model_cfg": tiny, "preprocess_cfg": {"resize_mode": resize_mode}}
    model_file = tmp_path / "open_clip_config.json"
    model_file.write_text(json.dumps(config))
    videos = tmp_path / "videos"
    videos.mkdir()
    for number in range(3):
        write_clip(videos / f"{number}.mp4", 20 + 16 * number, noise=60)
    index(
        videos,
        tmp_path / "library",
        model=str(model_file),
        segments="whole",
        frames_dtype="float32",
    )
    library = Library.open(tmp_path / "library", device="cpu")
    model = library.model.model
    encoder = model.encoder
    assert encoder.resizing.resize_mode == resize_mode
    split = RetrievalSplit(
        [Caption(str(number), "a red circle") for number in range(3)],
        {str(number): videos / f"{number}.mp4" for number in range(3)},
    )
    dataset = VideoDataset(
        split,
        encoder.video_transform(),
        sampling=Sampling(3, frames_per_second=2.0),
    )
    encoded = encode_split(model, dataset, split.captions)
    with torch.no_grad():
        expected = score_matrix(
            encoded.text_features, encoded.frame_features, model.similarity, encoded.frame_mask
        )[0]
    found = library.search("a red circle")
    scores = {result.path: result.score for result in found}
    got = torch.tensor([scores[f"{number}.mp4"] for number in range(3)])
    assert (got - expected).norm() < 1e-5 * expected.norm()


def test_two_writers_at_once(index, tmp_path, monkeypatch):
    monkeypatch.setattr("garevla.utils.locks._SECONDS", 0.1)
    (tmp_path / "videos").mkdir()
    index(tmp_path / "videos", tmp_path / "library")
    outcome: list[object] = []

    def other() -> None:
        try:
            index(tmp_path / "videos", tmp_path / "library")
        except InUseError as error:
            outcome.append(error)

    with lock_folder(tmp_path / "library"):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert "another process is writing into" in str(outcome[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"segment_seconds": 3.0}, "segments"),
        ({"segments": "whole"}, "segments"),
        ({"max_frames": 4}, "max_frames 3, not 4"),
        ({"model": "ViT-B-32"}, "model tiny, not ViT-B-32"),
        ({"frames_dtype": "float32"}, "frames_dtype float16, not float32"),
    ],
)
def test_other_settings_than_the_index_has(index, tmp_path, options, message):
    (tmp_path / "videos").mkdir()
    index(tmp_path / "videos", tmp_path / "library")
    with pytest.raises(LibraryError, match=message):
        index(tmp_path / "videos", tmp_path / "library", **options)


def test_folders_that_make_no_sense(index, tmp_path):
    (tmp_path / "videos").mkdir()
    (tmp_path / "others").mkdir()
    (tmp_path / "others" / "film.mp4").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match="video folder"):
        index(tmp_path / "nowhere", tmp_path / "library")
    with pytest.raises(LibraryError, match=r"not empty: it has film\.mp4"):
        index(tmp_path / "videos", tmp_path / "others")
    with pytest.raises(ConfigError, match="another folder than video_dir"):
        index(tmp_path / "videos", tmp_path / "videos")
    with pytest.raises(NotADirectoryError, match="output must be a folder"):
        index(tmp_path / "videos", tmp_path / "others" / "film.mp4")
    index(tmp_path / "videos", tmp_path / "library")
    with pytest.raises(LibraryError, match=r"is of .*videos, not of .*others"):
        index(tmp_path / "others", tmp_path / "library")


def test_an_index_in_its_own_video_folder(index, clips, tmp_path):
    shutil.copytree(clips, tmp_path / "videos", symlinks=True)
    output = tmp_path / "videos" / "library.garevla"
    assert index(tmp_path / "videos", output).num_videos == 3
    assert index(tmp_path / "videos", output).added == 0
