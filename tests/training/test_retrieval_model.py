from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import garevla
from garevla.encoders import ClipEncoder
from garevla.training import LossConfig, RetrievalModel, TrainConfig, build_model


@pytest.fixture
def model(make_config: Callable[..., TrainConfig]) -> RetrievalModel:
    config = make_config("run", loss={"pool_temperature": 0.5}, model={"psi_dropout": 0.0})
    return build_model(config)


def batch(model: RetrievalModel) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    tokens = model.tokenize(["a red circle", "a blue square moves", "two things"])
    mask = torch.arange(4) < torch.tensor([[4], [2], [3]])
    return tokens, torch.randn(3, 4, 3, 32, 32), mask


def test_loss_and_similarity_are_the_heads(model: RetrievalModel) -> None:
    tokens, video, mask = batch(model)
    texts, frames = model.encode_text(tokens), model.encode_video(video, mask)
    expected = garevla.GareLoss(model.psi, pool_temperature=0.5)(
        texts, frames, model.encoder.logit_scale, mask, return_similarity=True
    )
    output = model(tokens, video, mask)
    for name in ("loss", "contrastive", "bottleneck", "direction", "trust_region"):
        torch.testing.assert_close(getattr(output, name), getattr(expected, name))
    torch.testing.assert_close(model.similarity(texts, frames, mask), expected.similarity)


def test_every_parameter_gets_a_gradient(model: RetrievalModel) -> None:
    model(*batch(model)).loss.backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    # No part of the loss depends on keys' biases: attention is invariant to them.
    assert [name for name in without if "k_proj.bias" not in name] == []


def test_head_is_float32_under_autocast(model: RetrievalModel) -> None:
    tokens, video, mask = batch(model)
    exact = model(tokens, video, mask)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model(tokens, video, mask)
    assert rounded.loss.dtype == torch.float32
    assert (rounded.loss - exact.loss).abs() < 0.05 * exact.loss


def test_settings_reach_the_head(make_config: Callable[..., TrainConfig]) -> None:
    loss = {
        "pool_temperature": 2.0,
        "alpha": 1.5,
        "beta": 0.07,
        "lambda_direction": 0.1,
        "lambda_trust": 0.2,
        "trust_floor": 0.3,
        "bottleneck_reduction": "mean",
        "backend": "eager",
    }
    model = build_model(make_config("run", loss=loss, model={"psi_heads": 4, "psi_dropout": 0.25}))
    assert {name: getattr(model.gare_loss, name) for name in loss} == loss
    assert (model.psi.num_heads, model.psi.dropout) == (4, 0.25)
    assert model.encoder.max_frames == 4


def test_psi_of_another_dimension() -> None:
    encoder = ClipEncoder("tiny", None, temporal_layers=0)
    with pytest.raises(ValueError, match="psi is for dimension 8, the encoder's is 96"):
        RetrievalModel(encoder, garevla.CrossAttentionPsi(8), LossConfig())
