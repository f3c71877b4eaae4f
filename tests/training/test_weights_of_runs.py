"""Runs that begin with the weights of another."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from garevla.encoders.pretrained import PretrainedWeightsError
from garevla.training import CheckpointError, TrainConfig, build_model, train
from garevla.training.checkpoint import load_checkpoint
from tests.training.runs import STEPS_PER_EPOCH, MakeConfig, final_state, without_times

pytestmark = pytest.mark.usefixtures("no_curves")


def test_training_on_from_the_weights_of_a_run(
    make_config: MakeConfig, finished: TrainConfig
) -> None:
    origin = finished.run.output_dir / "last.pt"
    config = make_config("more", run={"init_from": str(origin)}, evaluation={"at_start": True})
    train(config)
    first = without_times(config)[0]
    assert first["step"] == 0
    # The first evaluation is the finished run's last.
    assert first["text_to_video"] == without_times(finished)[-1]["text_to_video"]
    assert final_state(config)["progress"]["step"] == 2 * STEPS_PER_EPOCH
    # The weights are needed once.
    origin.unlink()
    config.run.resume = True
    train(config)


@pytest.mark.parametrize("mode", ["gare", "discovla"])
def test_pretrained_weights_of_a_run_are_its_clip(
    make_config: MakeConfig, finished: TrainConfig, mode: str
) -> None:
    path = finished.run.output_dir / "best.pt"
    blocks = {"vision_fusion_blocks": 1, "text_fusion_blocks": 1}
    model = build_model(make_config("new", model={"mode": mode, "pretrained": str(path), **blocks}))
    weights = load_checkpoint(path)["model"]
    for name, value in model.encoder.clip.state_dict().items():
        assert torch.equal(value, weights[f"encoder.clip.{name}"]), name


def test_pretrained_weights_that_are_none(
    make_config: MakeConfig, finished: TrainConfig, tmp_path: Path
) -> None:
    def refusal(path: Path, name: str = finished.model.name) -> str:
        with pytest.raises(PretrainedWeightsError) as caught:
            build_model(make_config("new", model={"pretrained": str(path), "name": name}))
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 500
        return str(caught.value)

    path = finished.run.output_dir / "best.pt"
    assert "does not hold weights of 'tiny'" in refusal(path, "tiny")
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)
    assert "it is damaged" in refusal(path)
    torch.save({"weights": Path("x")}, tmp_path / "evil.pt")
    assert "might run code and is not loaded" in refusal(tmp_path / "evil.pt")
    torch.save({"weight": torch.ones(1)}, tmp_path / "other.pt")
    assert "Missing key(s) in state_dict" in refusal(tmp_path / "other.pt")
    (tmp_path / "text.pt").write_text("text")
    refusal(tmp_path / "text.pt")


def test_training_on_from_what_is_no_such_run(
    make_config: MakeConfig, finished: TrainConfig, tmp_path: Path
) -> None:
    origin = str(finished.run.output_dir / "best.pt")
    for model in (
        {"temporal_layers": 0},
        {"mode": "discovla", "text_fusion_blocks": 1, "vision_fusion_blocks": 1},
    ):
        with pytest.raises(
            CheckpointError, match=r"run\.init_from, .*best\.pt: .*another model: "
        ) as caught:
            train(make_config("other", model=model, run={"init_from": origin}))
        assert "\n" not in str(caught.value)
    (tmp_path / "text.pt").write_text("no checkpoint")
    with pytest.raises(CheckpointError, match=r"text\.pt is not a readable"):
        train(make_config("other", run={"init_from": str(tmp_path / "text.pt")}))
