"""`garevla caption`: the videos that it takes, and its settings."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from garevla.data import AnnotationError, Sampling, captioning, load_msrvtt
from garevla.data.captioning import CaptionConfig, caption_videos, run_captioning
from garevla.data.pseudo_captions import PseudoCaptions
from garevla.utils.processes import Processes


@pytest.fixture
def config(models: Callable[[str], str], small_dataset: Path, tmp_path: Path) -> CaptionConfig:
    return CaptionConfig(
        video_dir=small_dataset / "videos",
        output=tmp_path / "pseudo.json",
        model=models("git"),
        num_beams=1,
        max_new_tokens=4,
        num_workers=0,
    )


def test_every_video_of_a_folder(config, small_dataset):
    report = run_captioning(config, progress=False)
    pseudo = PseudoCaptions.load(config.output)
    assert report.num_videos == 16
    for split in ("train-9k", "test"):
        loaded = load_msrvtt(small_dataset / "annotations", small_dataset / "videos", split)
        assert pseudo.cover(loaded) is loaded
        assert {len(pseudo.find(caption)) for caption in loaded.captions} == {8}


def test_the_videos_of_a_split(config, small_dataset, capsys):
    config = dataclasses.replace(
        config, annotation_dir=small_dataset / "annotations", split="test", max_frames=3
    )
    report = run_captioning(config)
    assert (report.num_videos, report.num_frames) == (6, 18)
    assert "captioning: 100%" in capsys.readouterr().err


def test_folders_with_links_and_with_nothing(config, videos, tmp_path):
    config.video_dir = tmp_path / "videos"
    with pytest.raises(FileNotFoundError, match="video folder"):
        run_captioning(config)
    (config.video_dir / "part").mkdir(parents=True)
    (config.video_dir / "notes.txt").touch()
    (config.video_dir / "._video3.mp4").touch()
    with pytest.raises(AnnotationError, match=r"no video \(.mp4"):
        run_captioning(config)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.copy(videos["video3"], elsewhere)
    shutil.copy(videos["video0"], config.video_dir / "part" / "my_clip.MP4")
    (config.video_dir / "link").symlink_to(elsewhere)
    (config.video_dir / "part" / "up").symlink_to(config.video_dir)
    run_captioning(config, progress=False)
    assert list(json.loads(config.output.read_text())) == ["my_clip", "video3"]


def test_videos_of_a_split_without_a_file(config, small_dataset, tmp_path, caplog):
    folder = tmp_path / "videos"
    shutil.copytree(small_dataset / "videos", folder)
    (folder / "video11.mp4").unlink()
    config = dataclasses.replace(
        config, video_dir=folder, annotation_dir=small_dataset / "annotations", split="test"
    )
    with pytest.raises(FileNotFoundError, match="video11"):
        run_captioning(config, progress=False)
    config.bad_videos = "skip"
    assert run_captioning(config, progress=False).num_videos == 5
    assert "skipped 1 of 6 videos" in caplog.text


def test_every_setting_of_the_command_reaches_the_function(config, monkeypatch):
    fields = {field.name: field for field in dataclasses.fields(CaptionConfig)}
    options = dict(caption_videos.__kwdefaults__)
    assert CaptionConfig.frame_sampling.fget(CaptionConfig) == options.pop("sampling")
    config.max_frames, config.sampling, config.frames_per_second = 5, "resample", 2.0
    assert options.keys() - fields.keys() == {"progress", "processes"}
    for name, default in options.items():
        if name in fields:
            assert fields[name].default == default
            setattr(config, name, f"the {name}")
    options["processes"] = Processes(1, 2)
    received = {}
    monkeypatch.setattr(captioning, "caption_videos", lambda *_, **given: received.update(given))
    run_captioning(config, options["processes"], progress=False)
    assert received.pop("sampling") == Sampling(5, "resample", 2.0)
    wanted = {name: f"the {name}" for name in options if name in fields}
    assert received == wanted | {"progress": False, "processes": options["processes"]}
