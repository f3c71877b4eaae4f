from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import distributed

from benchmarks import chunks, gathering
from benchmarks import distributed as shared

processes = pytest.mark.skipif(
    not distributed.is_available(), reason="this torch has no torch.distributed"
)


@processes
@pytest.mark.slow
def test_pairs_fall_and_bytes_are_counted(tmp_path: Path):
    path = tmp_path / "distributed.json"
    losses = ["GARE without direction", "GARE, 32 videos of a direction", "DiscoVLA"]
    sizes = ["--batch", "40", "--dim", "16", "--frames", "3", "--repeats", "1"]
    shared.main(["--processes", "1", "2", "--losses", *losses, *sizes, "--json", str(path)])
    rows = json.loads(path.read_text())["results"]
    pairs = {(row["loss"], row["processes"]): row["pairs"] for row in rows}
    sent = {(row["loss"], row["processes"]): row["sent_bytes"] for row in rows}
    for loss in losses:
        again = 1 if "direction" in loss and "without" not in loss else 0
        assert pairs[loss, 1] == 40 * 40
        assert pairs[loss, 2] == 40 * 20 * (1 + again)
        assert sent[loss, 1] == 0
    # Features of texts there and their gradient back, a ring of two: (1 + 2 · 1/2 · 2) n.
    texts = 20 * 16 * 4
    assert 3 * texts < sent["GARE without direction", 2] < 6 * texts


@processes
@pytest.mark.slow
def test_what_gathering_does(tmp_path: Path):
    path = tmp_path / "gathering.json"
    gathering.main(["--processes", "2", "--batch", "8", "--json", str(path)])
    rows = {row["way"]: row for row in json.loads(path.read_text())["results"]}
    for part in ("encoder", "psi", "logit scale"):
        ours = rows[gathering.OURS][part]
        assert ours["factor"] == pytest.approx(1, rel=1e-9)
        assert ours["cosine"] == pytest.approx(1, rel=1e-12)
    default = next(row for way, row in rows.items() if "default" in way)
    assert default["encoder"]["factor"] == pytest.approx(0.5)
    assert default["psi"]["factor"] == pytest.approx(1)


def test_bytes_alive_are_those_of_tensors():
    encoder = torch.nn.Linear(10, 20, device="meta")
    video = torch.empty(6, 2, 10, device="meta")
    with chunks.LiveBytes() as live:
        del_me = encoder(video)
        assert live.now == live.most == 6 * 2 * 20 * 4
        del del_me
        assert live.now == 0
        chunks.step(encoder, video, 2)
    # Weights' and biases' gradients.
    assert live.now == 4 * (200 + 20)
