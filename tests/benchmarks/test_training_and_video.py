from __future__ import annotations

import json

import pytest

from benchmarks import cached, retrieval, training, video
from garevla import backend_status
from garevla.data import caching
from tests.data.decoding import ask_here


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["gare", "gare+discovla"])
def test_training_takes_encoder_and_head_apart(mode, tmp_path):
    path = tmp_path / "out.json"
    options = f"--mode {mode} --batch 2 --frames 2 --repeats 1 --device cpu --json {path}"
    training.main(options.split())
    rows = {row["head"]: row for row in json.loads(path.read_text())["results"]}
    able = {name for name, reason in backend_status().items() if reason is None}
    assert ("published" in rows) == (mode == "gare")
    if mode == "gare":
        assert rows.keys() == able | {"published"}
    assert all(row["head_seconds"] > 0 and row["encoder_seconds"] > 0 for row in rows.values())


def test_video_readers_see_the_same_frames(tmp_path):
    path = tmp_path / "out.json"
    video.main(f"--videos 3 --size 32 --rate 8 --seconds 2 --repeats 1 --json {path}".split())
    rows = json.loads(path.read_text())["results"]
    assert len(rows) == 2 * len(video.READERS)
    assert {row["status"] for row in rows} <= {"ok", "unavailable"}
    measured = {
        row["reader"]: row["frames"]
        for row in rows
        if row["task"] == "all frames" and row["status"] == "ok"
    }
    assert {"decord", "PyAV"} <= measured.keys()
    assert set(measured.values()) == {3 * 17}


@pytest.mark.parametrize("task", ["--texts 5 --videos 9 --k 3", "--texts 20 --videos 9 --captions"])
def test_retrieval_scores_with_every_backend(task, tmp_path, capsys):
    path = tmp_path / "out.json"
    options = f"{task} --frames 2 --dim 16 --slice 2 3 --json {path}"
    retrieval.main(options.split())
    table = capsys.readouterr().out
    assert ("20 × 9, all ranked both ways" if "captions" in task else "5 × 9, best 3") in table
    rows = json.loads(path.read_text())["results"]
    able = {name for name, reason in backend_status().items() if reason is None}
    assert {row["backend"] for row in rows} == able
    assert all(row["relative_error"] < 1e-4 for row in rows)


def test_cached_frames_beside_decoding(tmp_path, monkeypatch):
    monkeypatch.setattr(caching, "ask_processes", ask_here)
    path = tmp_path / "out.json"
    options = "--models tiny --batch 2 --steps 1 --videos 2 --size 32 --rate 8 --seconds 2"
    cached.main(f"{options} --repeats 1 --workers 1 --json {path}".split())
    rows = json.loads(path.read_text())["results"]
    assert [row["source"] for row in rows] == ["mp4", "cache"]
    assert rows[0]["times_mp4"] == 1
    for row in rows:
        assert 0 < row["data_share"] < 1
        assert 0 < row["waiting_share"] < 1
