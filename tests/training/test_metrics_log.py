from __future__ import annotations

from pathlib import Path

import pytest

from garevla.training.curves import draw_curves
from garevla.training.log import MetricsLog, read_metrics


def test_a_resumed_log_continues_without_repeats(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path) as log:
        log.write({"step": 1})
        at_checkpoint = log.num_bytes
        log.write({"step": 2, "loss": 0.5})
        assert len(read_metrics(path)) == 2
    with MetricsLog(path, at_checkpoint) as log:
        log.write({"step": 2, "loss": 0.25})
    assert read_metrics(path) == [{"step": 1}, {"step": 2, "loss": 0.25}]


def test_a_new_run_starts_an_empty_log(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n')
    with MetricsLog(path) as log:
        assert log.num_bytes == 0


def test_a_log_that_was_lost_is_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path, 1000) as log:
        log.write({"step": 8})
    assert read_metrics(path) == [{"step": 8}]


def test_damaged_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step"\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2: not JSON"):
        read_metrics(path)


def test_curves_without_regularizers_or_steps(tmp_path: Path) -> None:
    path = tmp_path / "curves.png"
    draw_curves([], path)
    empty = path.read_bytes()
    draw_curves([{"kind": "train", "epoch": 0.5, "loss": 1.0, "contrastive": 1.0}], path)
    assert path.read_bytes() != empty
    assert path.read_bytes().startswith(b"\x89PNG")
    assert [file.name for file in tmp_path.iterdir()] == ["curves.png"]
