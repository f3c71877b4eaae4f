"""What a run is refused for, before it has cost anything."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from garevla import BackendUnavailableError
from garevla.data import AnnotationError
from garevla.data.layouts.msrvtt import TEST_FILE
from garevla.ops import backends
from garevla.ops.backends import Backend
from garevla.training import ConfigError, TrainConfig, train
from garevla.utils import locks
from garevla.utils.locks import InUseError, lock_folder
from tests.training.runs import MakeConfig


def test_a_run_is_not_overwritten(make_config: MakeConfig, finished: TrainConfig) -> None:
    with pytest.raises(ConfigError, match=r"holds a run already.*run\.resume"):
        train(make_config("finished"))


def test_two_runs_in_one_folder(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "_SECONDS", 0.1)
    config = make_config("run")
    with (
        lock_folder(config.run.output_dir),
        pytest.raises(InUseError, match=r"another process is writing into .*run: wait for its"),
    ):
        train(config)


@pytest.mark.parametrize(
    ("section", "settings", "error"),
    [
        ("model", {"name": "ViT-B-31"}, "unknown model 'ViT-B-31'"),
        ("model", {"psi_heads": 3}, "num_heads must divide dim"),
        ("model", {"context_length": 2000}, "context_length must be between"),
        ("loss", {"backend": "abacus"}, "backend must be 'auto' or one of"),
        ("run", {"output_dir": "{tmp_path}/file/run"}, "Not a directory"),
        ("run", {"init_from": "{tmp_path}/none.pt"}, r"checkpoint not found: .*none\.pt"),
        ("data", {"pseudo_captions": "{tmp_path}/none.json"}, r"none\.json does not exist"),
        ("data", {"train_split": "train-8k"}, "split must be one of"),
    ],
)
def test_settings_are_refused_before_videos_are_decoded(
    make_config: MakeConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    section: str,
    settings: dict,
    error: str,
) -> None:
    (tmp_path / "file").touch()
    settings = {
        name: value.format(tmp_path=tmp_path) if isinstance(value, str) else value
        for name, value in settings.items()
    }
    sections = {"data": {"check_videos": True}}
    sections.setdefault(section, {}).update(settings)
    config = make_config("run", **sections)

    def decode(*arguments: object, **options: object) -> None:
        raise AssertionError("videos are decoded")

    monkeypatch.setattr("garevla.data.check.try_decoding", decode)
    with pytest.raises((ValueError, OSError), match=error):
        train(config)


def test_a_backend_that_cannot_run_is_refused_first(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = Backend("broken", unavailable=lambda device: "it is broken", operations={})
    monkeypatch.setitem(backends._BACKENDS, "broken", backend)
    config = make_config("run", loss={"backend": "broken"})
    with pytest.raises(BackendUnavailableError, match="'broken' cannot run here: it is broken"):
        train(config)
    assert not config.run.output_dir.exists()


def test_a_test_file_that_is_wrong_is_refused_before_videos_are_decoded(
    make_config: MakeConfig, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    annotations = shutil.copytree(dataset / "annotations", tmp_path / "annotations")
    (annotations / TEST_FILE).write_text("video_id\nvideo1\n")
    data = {"annotation_dir": str(annotations), "check_videos": True}
    monkeypatch.setattr("garevla.data.check.try_decoding", None)
    with pytest.raises(AnnotationError, match="no column 'sentence'"):
        train(make_config("run", data=data))


def test_device_that_is_not_there(make_config: MakeConfig) -> None:
    with pytest.raises(ValueError, match=r"device 'cuda:99' cannot be used"):
        train(make_config("run", run={"device": "cuda:99"}))
    with pytest.raises(ValueError, match=r"device 'toaster' cannot be used"):
        train(make_config("run", run={"device": "toaster"}))
    with pytest.raises(ValueError, match=r"device 'meta' cannot be used: it holds shapes"):
        train(make_config("run", run={"device": "meta"}))
