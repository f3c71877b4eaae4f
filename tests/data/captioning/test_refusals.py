"""Bad videos, wrong settings, and models that are not there or do not caption."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from garevla.data.captioning import CaptioningError
from garevla.data.video import VideoError
from garevla.utils import locks
from garevla.utils.locks import InUseError, lock_file
from tests.data.captioning.journals import journalled


@pytest.fixture
def some_bad(videos: dict[str, Path], tmp_path: Path) -> dict[str, Path]:
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(videos["video0"].read_bytes()[:600])
    return {**videos, "video0": cut, "video4": tmp_path / "absent.mp4"}


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_bad_video_stops_the_run(caption, some_bad, num_workers, tmp_path):
    with pytest.raises(VideoError, match=r"cut\.mp4: truncated") as caught:
        caption(tmp_path / "out.json", videos=some_bad, num_workers=num_workers)
    assert caught.value.path == some_bad["video0"]
    assert journalled(tmp_path / "out.json") == ["video3"]


def test_bad_videos_are_skipped_when_asked(caption, some_bad, tmp_path, caplog):
    output = tmp_path / "out.json"
    with caplog.at_level(logging.WARNING):
        report = caption(output, videos=some_bad, bad_videos="skip")
    assert list(json.loads(output.read_text())) == ["video3", "video8"]
    assert [path for path, _ in report.bad] == [some_bad["video0"], some_bad["video4"]]
    assert "skipped 2 of 4 videos" in caplog.text
    assert "absent.mp4: no such file" in caplog.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"videos": {}}, "number of videos must be at least 1"),
        ({"num_beams": 0}, "num_beams must be at least 1"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"num_workers": -1}, "num_workers must be at least 0"),
        ({"bad_videos": "ignore"}, "bad_videos must be 'error' or 'skip'"),
        ({"device": "abacus"}, "device 'abacus' cannot be used"),
    ],
)
def test_wrong_settings(caption, changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        caption(tmp_path / "out.json", model="any", **changes)
    assert not list(tmp_path.iterdir())


def test_a_model_that_is_not_there(caption, monkeypatch, tmp_path):
    pytest.importorskip("transformers")
    with pytest.raises(CaptioningError, match=r"'.*nowhere' cannot be loaded; .* local copy"):
        caption(tmp_path / "out.json", model=str(tmp_path / "nowhere"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(CaptioningError, match="'garevla/nowhere' cannot be loaded"):
        caption(tmp_path / "out.json", model="garevla/nowhere")
    assert not list(tmp_path.iterdir())


class _NoConnection(Exception):
    """Stands for what the hub's client raises."""


def test_without_a_connection_only_local_copies_are_tried(caption, monkeypatch, tmp_path):
    transformers = pytest.importorskip("transformers")
    tried = []

    def refuse(*_: object, **options: object) -> None:
        raise _NoConnection("Name or service not known")

    def load(name: str, **options: object) -> None:
        tried.append(options["local_files_only"])
        raise OSError("not in the cache")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", refuse)
    monkeypatch.setattr(transformers.AutoImageProcessor, "from_pretrained", load)
    message = "no copy of it, and the Hugging Face hub is not reached: Name or service not known"
    with pytest.raises(CaptioningError, match=message):
        caption(tmp_path / "captions.json", model="garevla/nowhere")
    assert tried == [True]


def test_without_a_connection_the_command_fails_in_seconds(videos, tmp_path):
    pytest.importorskip("transformers")
    folder = next(iter(videos.values())).parent
    flags = ["--video_dir", str(folder), "--output", str(tmp_path / "c.json"), "--num_workers", "0"]
    # Nothing listens there.
    network = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "empty")}
    command = [sys.executable, "-m", "garevla", "caption", *flags]
    result = subprocess.run(
        command, env={**os.environ, **network}, capture_output=True, text=True, timeout=100
    )
    assert result.returncode == 2, result.stderr
    assert "hub is not reached" in result.stderr.splitlines()[-1]
    assert "Retrying" not in result.stderr


def test_one_process_writes_a_file(caption, monkeypatch, tmp_path):
    monkeypatch.setattr(locks, "_SECONDS", 0.1)
    output = tmp_path / "captions.json"
    with (
        lock_file(output),
        pytest.raises(InUseError, match=r"another process is writing .*captions\.json: wait"),
    ):
        caption(output)


def test_models_that_do_not_caption_an_image_by_themselves(caption, models, tmp_path):
    folder = tmp_path / "other"
    shutil.copytree(models("blip"), folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["chat_template"] = "{{ messages }}"
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(CaptioningError, match="is a chat model, which needs a prompt"):
        caption(tmp_path / "out.json", model=str(folder))

    shutil.rmtree(folder)
    shutil.copytree(models("encoder-decoder"), folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "vit"}))
    with pytest.raises(CaptioningError, match=r"cannot be loaded.* Reason: Unrecognized config"):
        caption(tmp_path / "out.json", model=str(folder))


def test_without_transformers(caption, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r'pip install "garevla\[caption\]"'):
        caption(tmp_path / "out.json", model="any")
