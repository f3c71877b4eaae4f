from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import garevla
from garevla.encoders import ClipEncoder, DiscoVLAEncoder
from garevla.training import RetrievalModel, TrainConfig, build_model


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
    expected = garevla.GareLoss(model.criterion.psi, pool_temperature=0.5)(
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
    assert {name: getattr(model.criterion, name) for name in loss} == loss
    assert (model.criterion.psi.num_heads, model.criterion.psi.dropout) == (4, 0.25)
    assert model.encoder.max_frames == 4


def test_the_settings_choose_psi(make_config: Callable[..., TrainConfig]) -> None:
    settings = {"psi": "gap_mlp", "psi_hidden_dim": 24, "psi_activation": "silu"}
    psi = build_model(make_config("run", model={**settings, "psi_dropout": 0.2})).criterion.psi
    assert isinstance(psi, garevla.GapMLPPsi)
    assert (psi.hidden_dim, psi.activation, psi.dropout) == (24, "silu", 0.2)
    psi = build_model(make_config("run", model={"psi_dropout_mode": "pair"})).criterion.psi
    assert isinstance(psi, garevla.CrossAttentionPsi)
    assert (psi.dropout, psi.dropout_mode, psi.init) == (0.3, "pair", "published")
    for kind in ("cross_attention", "gap_mlp"):
        model = {"psi": kind, "psi_init": "small"}
        assert build_model(make_config("run", model=model)).criterion.psi.init == "small"


def test_psi_of_another_dimension() -> None:
    encoder = ClipEncoder("tiny", None, temporal_layers=0)
    with pytest.raises(ValueError, match="psi is for dimension 8, the encoder's is 96"):
        RetrievalModel(encoder, garevla.GareLoss(garevla.CrossAttentionPsi(8)))


ADAPTED = {"vision_fusion_blocks": 1, "text_fusion_blocks": 1, "lora_rank": 2}


@pytest.mark.parametrize("mode", ["discovla", "gare+discovla"])
def test_adapted_modes(make_config: Callable[..., TrainConfig], mode: str) -> None:
    loss = {"frame_weight": 0.7, "distillation": "mean_detached", "beta": 0.01}
    config = make_config("run", loss=loss, model={"mode": mode, "psi_dropout": 0.0, **ADAPTED})
    model = build_model(config)
    assert isinstance(model.encoder, DiscoVLAEncoder)
    tokens, video, mask = batch(model)
    words = model.tokenize([f"frame {i}" for i in range(12)]).view(3, 4, -1)
    output = model(tokens, video, mask, words)
    texts, frames = model.encode_text(tokens), model.encode_video(video, mask)
    captions = model.encoder.encode_pseudo_captions(words, mask)
    if mode == "discovla":
        expected = garevla.DiscoVLALoss(frame_weight=0.7, distillation="mean_detached")
        similarity = garevla.mean_frame_similarity(texts, frames, mask)
    else:
        psi = model.criterion.psi
        expected = garevla.GareDiscoVLALoss(
            psi, frame_weight=0.7, distillation="mean_detached", beta=0.01
        )
        similarity = garevla.gare_similarity(texts, frames, psi, mask)
    torch.testing.assert_close(model.similarity(texts, frames, mask), similarity)
    scale = model.encoder.logit_scale
    torch.testing.assert_close(output.loss, expected(texts, frames, scale, mask, captions).loss)
    # Without pseudo captions the frame-level terms are off.
    assert model(tokens, video, mask).frame is None
    output.loss.backward()
    trained = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert not any(name.startswith("encoder.clip.") for name in trained)
    assert any("fusion" in name for name in trained)
    assert any("temporal" in name for name in trained)


def test_pseudo_captions_need_the_adapted_encoder(model: RetrievalModel) -> None:
    tokens, video, mask = batch(model)
    with pytest.raises(TypeError, match="pseudo captions are for DiscoVLA"):
        model(tokens, video, mask, tokens.unsqueeze(1).expand(-1, 4, -1))
