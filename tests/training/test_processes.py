"""Training by several processes: the weights of one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import distributed

from garevla.data.sampler import ShardedBatchSampler, UniqueVideoBatchSampler
from garevla.data.synthetic import PSEUDO_CAPTION_FILE
from garevla.training import (
    EvaluateConfig,
    TrainConfig,
    build_model,
    evaluate_checkpoint,
    train,
)
from garevla.training.checkpoint import load_checkpoint
from tests.helpers import relative_error
from tests.training.kills import end, start, torchrun, train_and_kill
from tests.training.runs import without_times

processes = pytest.mark.skipif(
    not distributed.is_available(), reason="this torch has no torch.distributed"
)
MODES = [
    ("gare+discovla", "text"),
    pytest.param("gare", "text", marks=pytest.mark.slow),
    pytest.param("gare", "video", marks=pytest.mark.slow),
    pytest.param("discovla", "text", marks=pytest.mark.slow),
]


def run(config: TrainConfig, count: int) -> str:
    return end(start(config, count))


def weights(config: TrainConfig) -> dict[str, torch.Tensor]:
    return load_checkpoint(config.run.output_dir / "last.pt")["model"]


def log_bytes_of(config: TrainConfig, records: int) -> int:
    log = (config.run.output_dir / "metrics.jsonl").read_bytes()
    return sum(map(len, log.splitlines(keepends=True)[:records]))


def settings(dataset: Path, mode: str) -> dict[str, dict]:
    captions = dataset / "annotations" / PSEUDO_CAPTION_FILE
    return {
        "data": {"max_frames": 8, "pseudo_captions": None if mode == "gare" else str(captions)},
        "model": {
            "mode": mode,
            "psi_dropout_mode": "pair",
            "vision_fusion_blocks": 1,
            "text_fusion_blocks": 1,
        },
        "run": {"save_every_steps": 3, "resume": True},
    }


def assert_same_weights(one: TrainConfig, other: TrainConfig) -> None:
    """What training changed is the same.

    Of all parameters together: of those without a gradient, such as keys' biases, AdamW makes large
    steps out of rounding.
    """
    torch.manual_seed(one.run.seed)
    before = build_model(one).state_dict()
    want, found = weights(one), weights(other)
    assert want.keys() == found.keys()
    names = [name for name, value in want.items() if value.is_floating_point()]
    changes = [
        torch.cat([(after[name] - before[name]).flatten() for name in names])
        for after in (want, found)
    ]
    assert changes[0].norm() > 0.1
    assert relative_error(changes[1], changes[0]) < 3e-3


@processes
@pytest.mark.parametrize(("mode", "corrects"), MODES)
def test_two_processes_end_with_the_weights_of_one(
    make_config: Callable[..., TrainConfig], dataset: Path, mode: str, corrects: str
):
    options = settings(dataset, mode)
    options["model"]["corrects"] = corrects
    alone, together = (make_config(name, **options) for name in ("one", "two"))
    metrics = train(alone)
    output = run(together, 2)
    assert output.count("written to") == 1
    assert_same_weights(alone, together)
    recall = f"{metrics['text_to_video'].recall_at_1:.1f}"
    assert recall in output
    for mine, its in zip(without_times(together), without_times(alone), strict=True):
        assert mine.keys() == its.keys()
        if mine["kind"] == "train":
            assert mine["loss"] == pytest.approx(its["loss"], rel=1e-4)
            assert mine["grad_norm"] == pytest.approx(its["grad_norm"], rel=1e-3)


@processes
@pytest.mark.slow
def test_compiled_processes_end_with_the_weights_of_a_plain_one(
    make_config: Callable[..., TrainConfig], dataset: Path
):
    # With pairs' dropout, as is usual: its masks are the same, compiled or not.
    options = settings(dataset, "gare")
    plain = make_config("one", **options)
    options["run"]["compile"] = True
    compiled = make_config("two", **options)
    train(plain)
    run(compiled, 2)
    assert_same_weights(plain, compiled)


@processes
@pytest.mark.slow
def test_one_process_is_killed_and_the_run_resumed(
    make_config: Callable[..., TrainConfig], dataset: Path
):
    options = settings(dataset, "gare")
    options["data"]["keep_in_memory"] = False
    options["optimizer"] = {"epochs": 4}
    alone, together = (make_config(name, **options) for name in ("one", "two"))
    train(alone)
    first_epoch = log_bytes_of(alone, records=6)
    assert train_and_kill(together, 2, victim=1, grown=first_epoch, delay=0.0)
    # Another number of processes goes on to the same weights.
    train(together)
    assert_same_weights(alone, together)


@processes
@pytest.mark.slow
def test_commands_share_their_work(finished: TrainConfig, dataset: Path, tmp_path: Path):
    checkpoint = finished.run.output_dir / "last.pt"
    options = {"device": "cpu", "num_workers": 0, "check_videos": False}
    alone = evaluate_checkpoint(EvaluateConfig(checkpoint, **options), progress=False)
    figures = tmp_path / "figures.json"
    flags = ("--device", "cpu", "--num_workers", 0, "--batch_size", 3, "--output", figures)
    # The checking is shared, too.
    output = end(torchrun(2, "evaluate", "--checkpoint", checkpoint, *flags))
    assert json.loads(figures.read_text()) == alone.as_dict()
    ranks = figures.with_name("figures.ranks.jsonl").read_text(encoding="utf-8")
    assert ranks.splitlines() == list(alone.rank_lines())
    output_with_dsl = end(torchrun(2, "evaluate", "--checkpoint", checkpoint, *flags, "--dsl"), 1)
    assert "dsl and qb_norm need a single process" in output_with_dsl
    assert output.count("R@10") == 1

    videos = tmp_path / "videos"
    shutil.copytree(dataset / "videos", videos)
    broken = videos / "video20.mp4"
    broken.write_bytes(b"")
    folders = ("--annotation_dir", dataset / "annotations", "--video_dir", videos)
    output = end(torchrun(2, "check-data", *folders, "--num_workers", 1), code=1)
    assert output.count(f"{broken}: ") == 1
    assert output.count("1 of") == 1
    # What one process meets ends all.
    more = ("--check_videos", "false")
    output = end(torchrun(2, "evaluate", "--checkpoint", checkpoint, *folders, *flags, *more), 1)
    assert f"garevla: error: {broken}" in output


@processes
@pytest.mark.slow
def test_what_the_first_process_meets_ends_all(
    make_config: Callable[..., TrainConfig], finished: TrainConfig
):
    finished.run.resume = False
    process = start(finished, 2)
    output, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "holds a run already" in output


def test_parts_of_batches():
    whole = UniqueVideoBatchSampler([f"video{i // 2}" for i in range(26)], 7, seed=3)
    parts = [ShardedBatchSampler(whole, rank, 3) for rank in range(3)]
    for part in parts:
        part.set_epoch(2, 1)
        assert len(part) == len(whole)
    whole.set_epoch(2, 1)
    for batch, *own in zip(whole, *parts, strict=True):
        assert [index for part in own for index in part] == batch
        assert max(map(len, own)) - min(map(len, own)) <= 1


@processes
def test_more_processes_than_pairs(make_config: Callable[..., TrainConfig], monkeypatch):
    monkeypatch.setattr("garevla.training.loop.join_processes", _many)
    with pytest.raises(Exception, match="do not go round 9 processes"):
        train(make_config("run"))


class _many:
    """Nine processes, as far as one can tell before the first step."""

    def __init__(self, device_name: str) -> None:
        pass

    def __enter__(self) -> tuple[object, torch.device]:
        from garevla.utils.processes import Processes

        many = Processes(0, 9)
        object.__setattr__(many, "_tell", lambda failure: None)
        return many, torch.device("cpu")

    def __exit__(self, *_: object) -> None:
        pass
