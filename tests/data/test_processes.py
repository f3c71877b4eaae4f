"""Processes that share the checking and the captioning of videos."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import distributed
from torch.multiprocessing import ProcessExitedException

from garevla.data import Sampling, captioning, check
from garevla.data.captioning import CaptioningReport, caption_videos
from garevla.data.check import CheckReport, check_split, check_videos
from garevla.utils.processes import Processes
from tests.distributed import run_processes

pytestmark = pytest.mark.skipif(
    not distributed.is_available(), reason="this torch has no torch.distributed"
)


class Brightness:
    """Calls each frame by its brightness."""

    name = "brightness"

    def __init__(self, *_: Any) -> None:
        pass

    def image_processor(self, images: list[np.ndarray], **_: Any) -> Mapping[str, torch.Tensor]:
        return {"frames": torch.tensor([image.mean() for image in images])}

    def __call__(self, inputs: dict[str, torch.Tensor]) -> list[str]:
        return [f"brightness {value:.6f}" for value in inputs["frames"].tolist()]


def caption(videos: dict[str, Path], output: Path, rank: int, count: int) -> CaptioningReport:
    captioning.Captioner = Brightness
    options = {"bad_videos": "skip", "num_workers": 0, "progress": False}
    processes = Processes(rank, count)
    return caption_videos(videos, output, device="cpu", processes=processes, **options)


def caption_and_die(rank: int, videos: dict[str, Path], output: Path) -> None:
    """The second process is killed at its second video."""
    read = captioning.read_frames

    def read_or_die(path: Path, sampling: Sampling) -> np.ndarray:
        if path == videos["video8"]:
            os.kill(os.getpid(), signal.SIGKILL)
        return read(path, sampling)

    captioning.read_frames = read_or_die
    caption(videos, output, rank, 2)


def go_on(rank: int, videos: dict[str, Path], output: Path) -> CaptioningReport:
    return caption(videos, output, rank, 3)


@pytest.fixture
def videos(small_dataset: Path, tmp_path: Path) -> dict[str, Path]:
    """Four good ones and a bad one."""
    (tmp_path / "bad.mp4").write_bytes(b"")
    found = {f"video{i}": small_dataset / "videos" / f"video{i}.mp4" for i in (3, 0, 4, 8)}
    return {**found, "bad": tmp_path / "bad.mp4"}


def test_a_killed_process_loses_no_caption(
    videos: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(captioning, "Captioner", Brightness)
    one = caption(videos, tmp_path / "one.json", 0, 1)
    output = tmp_path / "shared" / "out.json"
    output.parent.mkdir()
    with pytest.raises(ProcessExitedException, match="SIGKILL"):
        run_processes(2, tmp_path, caption_and_die, videos, output)
    journal = output.with_name("out.json.partial.1.jsonl").read_text().splitlines()
    assert [json.loads(line)["video_id"] for line in journal[1:]] == ["video0"]
    (tmp_path / "meeting").unlink(missing_ok=True)
    reports = run_processes(3, tmp_path, go_on, videos, output)
    assert output.read_bytes() == (tmp_path / "one.json").read_bytes()
    assert [path.name for path in output.parent.iterdir()] == ["out.json"]
    for report in reports:
        assert (report.num_videos, report.bad) == (one.num_videos, one.bad)


def check_both(rank: int, root: Path, cache: Path) -> tuple[CheckReport, CheckReport, int]:
    processes = Processes(rank, 2)
    split = check_split(
        root / "annotations", root / "videos", "test", progress=False, processes=processes
    )
    decoded = []
    decode = check.try_decoding

    def counted(paths: list[Path], *arguments: Any) -> Any:
        decoded.extend(paths)
        return decode(paths, *arguments)

    check.try_decoding = counted
    paths = sorted((root / "videos").glob("*.mp4"))
    whole = check_videos(paths[:5], cache=cache, progress=False, processes=processes)
    again = check_videos(paths[:6], cache=cache, progress=False, processes=processes)
    assert again.bad == whole.bad
    return split, whole, len(decoded)


def test_one_report(small_dataset: Path, tmp_path: Path):
    # A copy of what is looked at, one of it damaged and one missing.
    root = tmp_path / "dataset"
    (root / "videos").mkdir(parents=True)
    (root / "annotations").symlink_to(small_dataset / "annotations")
    for path in (small_dataset / "videos").iterdir():
        (root / "videos" / path.name).symlink_to(path)
    bad = {"video11.mp4", "video12.mp4"}
    for name in bad:
        (root / "videos" / name).unlink()
        (root / "videos" / name).write_bytes(b"")
    (root / "videos" / "video13.mp4").unlink()
    want = check_split(root / "annotations", root / "videos", "test", progress=False)
    found = run_processes(2, tmp_path, check_both, root, tmp_path / "good.json")
    for split, whole, _ in found:
        assert split == want
        assert {path.name for path, _ in split.bad} == {*bad, "video13.mp4"}
        assert {path.name for path, _ in whole.bad} == bad
    # Five files, then the bad ones once more, and a new one.
    assert sorted(decoded for *_, decoded in found) == [3, 5]
