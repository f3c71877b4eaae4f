from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import starts, tables
from garevla.evaluation import EncodedSplit


def split(videos: int, frames: int) -> EncodedSplit:
    """Two captions a video, near its frames."""
    features = torch.randn(videos, frames, 16)
    text = features.mean(1).repeat_interleave(2, 0) + 0.1 * torch.randn(2 * videos, 16)
    mask = torch.ones(videos, frames, dtype=torch.bool)
    targets = np.arange(videos).repeat(2)
    return EncodedSplit(text, features, mask, targets, tuple(map(str, range(videos))))


@pytest.mark.parametrize("name", starts.VARIANTS)
def test_a_variant(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(starts, "DIM", 16)
    monkeypatch.setattr(starts, "BATCH_SIZE", 5)
    splits = {"train-9k": split(10, 3), "test": split(8, 3)}
    rows: list[dict[str, Any]] = [starts.train_variant(name, seed, splits, 2) for seed in (0, 0)]
    first, again = ({**row, "seconds": None} for row in rows)
    assert first == again
    assert len(first["text_to_video"]) == 3
    assert first["without_increments"] == 100
    if "small" in name:
        assert first["text_to_video"][0] == 100


def test_features_of_a_norm():
    features = torch.randn(3, 4, 8)
    assert starts.bring_to_norm(features, None) is features
    norms = starts.bring_to_norm(features, 10.0).norm(dim=-1)
    assert torch.allclose(norms, torch.full((3, 4), 10.0))


def test_table():
    rows = [
        {"variant": "small", "text_to_video": curve, "seed": seed}
        for seed, curve in enumerate([[10.0, 30.0], [20.0, 34.0]])
    ]
    columns, lines = tables.starts(rows)
    assert columns == ["<features, start", "epoch 0", "epoch 1", "seeds"]
    assert lines == [["small", "15.0 ± 7.1", "32.0 ± 2.8", "2"]]
