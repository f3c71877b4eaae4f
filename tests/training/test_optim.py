from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from garevla import CrossAttentionPsi, DiscoVLALoss, GareLoss
from garevla.encoders import ClipEncoder, DiscoVLAEncoder
from garevla.training.model import RetrievalModel
from garevla.training.optim import (
    create_optimizer,
    create_schedule,
    parameter_groups,
    warmup_cosine,
)


def groups_of(model: RetrievalModel) -> dict[str, dict]:
    groups = parameter_groups(
        model, model.encoder.clip, learning_rate=1e-4, clip_lr_scale=1e-3, weight_decay=0.2
    )
    return {group["name"]: group for group in groups}


@pytest.fixture(scope="module")
def model() -> RetrievalModel:
    encoder = ClipEncoder("tiny", None, temporal_layers=1)
    return RetrievalModel(encoder, GareLoss(CrossAttentionPsi(encoder.dim)))


def test_every_parameter_is_in_one_group(model: RetrievalModel) -> None:
    grouped = [id(p) for group in groups_of(model).values() for p in group["params"]]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {id(p) for p in model.parameters()}


def test_fusion_adapters_decay_whole() -> None:
    """DiscoVLA's published weight decay spares none of its parameters."""
    encoder = DiscoVLAEncoder("tiny", None, vision_fusion_blocks=1, text_fusion_blocks=1)
    groups = groups_of(RetrievalModel(encoder, DiscoVLALoss()))
    assert groups.keys() == {"new"}
    assert {id(p) for p in groups["new"]["params"]} == {
        id(p) for p in encoder.parameters() if p.requires_grad
    }


def test_groups_are_the_published_ones(model: RetrievalModel) -> None:
    groups = groups_of(model)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert groups.keys() == {"clip", "clip_no_decay", "new", "new_no_decay"}
    for group_name, group in groups.items():
        is_clip = group_name.startswith("clip")
        decays = not group_name.endswith("no_decay")
        assert group["lr"] == pytest.approx(1e-7 if is_clip else 1e-4)
        assert group["weight_decay"] == (0.2 if decays else 0.0)
        for parameter in group["params"]:
            name = names[id(parameter)]
            assert name.startswith("encoder.clip.") == is_clip
            is_norm = any(part in name for part in (".ln_", "layer_norm"))
            assert (is_norm or name.endswith(("bias", "logit_scale"))) != decays


def test_frozen_parameters_are_left_out() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].requires_grad_(False)
    groups = parameter_groups(
        model, model[0], learning_rate=1.0, clip_lr_scale=0.1, weight_decay=0.2
    )
    assert [group["name"] for group in groups] == ["new", "new_no_decay"]


def test_published_optimizer_constants() -> None:
    optimizer = create_optimizer([{"params": [nn.Parameter(torch.zeros(1))], "lr": 0.1}])
    assert optimizer.defaults["betas"] == (0.9, 0.98)
    assert optimizer.defaults["eps"] == 1e-6


def test_schedule_values() -> None:
    factors = [warmup_cosine(step, 100, 0.1) for step in range(101)]
    assert factors[:11] == pytest.approx([*(i / 10 for i in range(10)), factors[10]])
    assert factors[10] == pytest.approx(0.5 * (1 + math.cos(0.1 * math.pi)))
    assert factors[50] == pytest.approx(0.5)
    assert factors[100] == pytest.approx(0.0)
    assert all(a > b for a, b in pairwise(factors[10:]))
    assert warmup_cosine(0, 10, 0.0) == 1.0


def test_schedule_scales_every_group() -> None:
    groups = [{"params": [nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (1.0, 1e-3)]
    optimizer = create_optimizer(groups)
    schedule = create_schedule(optimizer, 20, 0.1)
    seen = []
    for _ in range(20):
        seen.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    for step, (first, second) in enumerate(seen):
        assert first == pytest.approx(warmup_cosine(step, 20, 0.1))
        assert second == pytest.approx(1e-3 * first)
