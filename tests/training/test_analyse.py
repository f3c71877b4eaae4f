"""``garevla analyse``, and the analyses that a run notes."""

from __future__ import annotations

import contextlib
import copy
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from garevla import cli
from garevla.data.dataset import VideoDataset
from garevla.data.layouts.msrvtt import load_msrvtt
from garevla.evaluation import EncodedSplit, encode_split
from garevla.training import ConfigError, TrainConfig, load_model, loop, train
from garevla.training import analyse as training_analyse
from garevla.training.analyse import analyse_encoded
from garevla.training.checkpoint import load_checkpoint
from garevla.training.data import make_dataset
from garevla.training.evaluation_settings import AnalyseConfig
from garevla.training.log import read_metrics
from garevla.utils.processes import Processes
from tests.training.conftest import small_config
from tests.training.runs import without_times


@pytest.fixture(scope="module")
def noted(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """A finished run that noted analyses; not to be changed."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("runs") / "noted"
    config = small_config(
        dataset, folder, run={"save_every_steps": 2}, evaluation={"analyse": True}
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "draw_curves", lambda records, path: None)
        train(config)
    return config


@pytest.fixture
def run(noted: TrainConfig, tmp_path: Path) -> Path:
    return shutil.copytree(noted.run.output_dir, tmp_path / "run")


def analyse(*arguments: object) -> int:
    return cli.main(["analyse", *map(str, arguments), "--device", "cpu", "--num_workers", "0"])


def test_the_log_has_an_analysis_of_each_epoch(noted: TrainConfig):
    records = read_metrics(noted.run.output_dir / "metrics.jsonl")
    found = [record for record in records if record["kind"] == "analysis"]
    assert [record["epoch"] for record in found] == [1, 2]
    model, trained = load_model(noted.run.output_dir / "last.pt")
    split = load_msrvtt(trained.data.annotation_dir, trained.data.video_dir, "test")
    videos = make_dataset(VideoDataset, split, trained.data, model.encoder)
    encoded = encode_split(model, videos, split.captions)
    expected = json.loads(json.dumps(analyse_encoded(model, encoded).as_dict()))
    assert {name: found[1][name] for name in expected} == expected


def test_training_is_the_same(noted: TrainConfig, uninterrupted: TrainConfig):
    weights, expected = (
        load_checkpoint(config.run.output_dir / "last.pt")["model"]
        for config in (noted, uninterrupted)
    )
    assert all(torch.equal(weights[name], value) for name, value in expected.items())
    records = [record for record in without_times(noted) if record["kind"] != "analysis"]
    assert records == without_times(uninterrupted)


def test_the_command_writes_a_page(run: Path, capsys: pytest.CaptureFixture[str]):
    assert analyse(run) == 0
    path = run / "analysis.html"
    assert capsys.readouterr().out == f"{path}\n"
    page = path.read_text(encoding="utf-8")
    assert "8 captions and 8 videos" in page
    assert '<figure id="epochs-loss">' in page
    # Weights that two files hold are shown once.
    best, last = (load_checkpoint(run / name)["model"] for name in ("best.pt", "last.pt"))
    same = all(torch.equal(best[name], last[name]) for name in best)
    assert ("<h2>best.pt, last.pt</h2>" in page) == same
    assert not list(run.glob("*.tmp"))


def test_near_duplicates_and_another_place(run: Path, noted: TrainConfig, tmp_path: Path):
    (run / "best.pt").unlink()
    (run / "metrics.jsonl").unlink()
    split = load_msrvtt(noted.data.annotation_dir, noted.data.video_dir, "test")
    groups = tmp_path / "near.csv"
    groups.write_text(",".join(list(split.videos)[:3]) + "\n")
    output = tmp_path / "made" / "page.html"
    assert analyse(run, "--near_duplicates", groups, "--output", output) == 0
    page = output.read_text(encoding="utf-8")
    assert "similarity with increments, near-duplicates" in page
    assert "evaluation.analyse true" in page
    assert not (run / "analysis.html").exists()


def test_several_processes_are_refused(
    run: Path, noted: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    @contextlib.contextmanager
    def joined(device: str) -> Iterator[tuple[Processes, torch.device]]:
        yield Processes(0, 2), torch.device("cpu")

    for module in (loop, training_analyse):
        monkeypatch.setattr(module, "join_processes", joined)
    with pytest.raises(ConfigError, match="analyse needs a single process"):
        training_analyse.analyse_run(AnalyseConfig(run))
    config = copy.deepcopy(noted)
    config.run.output_dir = tmp_path / "other"
    with pytest.raises(ConfigError, match=r"evaluation\.analyse needs a single process"):
        train(config)


def test_what_cannot_be_analysed_is_told(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    def told(*arguments: object) -> str:
        capsys.readouterr()
        assert analyse(*arguments) == 2
        error = capsys.readouterr().err
        assert error.startswith("garevla: error: ")
        assert "Traceback" not in error
        return error

    assert "no folder of a run: " in told(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "has no checkpoint: neither best.pt nor last.pt" in told(tmp_path / "empty")
    assert "not a file" in told(run, "--output", tmp_path)
    assert "8 of 8 videos of split 'test' cannot be used" in told(
        run, "--video_dir", tmp_path / "empty"
    )
    (run / "last.pt").write_bytes((run / "last.pt").read_bytes()[:1000])
    assert "not a readable checkpoint" in told(run)
    with (run / "metrics.jsonl").open("a") as file:
        file.write("{\n")
    assert "not JSON" in told(run)


def test_a_list_of_targets_is_that_of_the_split(noted: TrainConfig):
    """Several captions of a video, in any order, each count with their own."""
    model, _ = load_model(noted.run.output_dir / "last.pt")
    torch.manual_seed(0)
    dim = model.encoder.dim
    targets = np.array([2, 0, 1, 0])
    text, frames = torch.randn(4, dim), torch.randn(3, 4, dim)
    encoded = EncodedSplit(
        text, frames, torch.ones(3, 4, dtype=torch.bool), targets, ("a", "b", "c")
    )
    found = analyse_encoded(model, encoded).scalars["similarity_after_right"]
    similarity = model.similarity(text, frames).detach()
    expected = similarity[torch.arange(4), torch.from_numpy(targets)].mean()
    assert found == pytest.approx(float(expected), rel=1e-5)
