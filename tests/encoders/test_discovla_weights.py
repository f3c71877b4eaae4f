"""DiscoVLA's adapter files, merged LoRA, and the published names of its weights."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

from garevla.encoders.discovla import AdaptersError, DiscoVLAEncoder
from tests.encoders.small_discovla import (
    FRAMES,
    build,
    copy_of,
    random_video,
    same_features,
    write_config,
)
from tests.helpers import relative_error


def test_adapters_save_and_load_alone(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    encoder = build(config)
    path = tmp_path / "adapters.safetensors"
    encoder.save_adapters(path)
    with safetensors.safe_open(path, "pt") as file:
        assert file.metadata()["base_model"] == "small"
    stored = safetensors.torch.load_file(path)
    trainable = {n for n, p in encoder.named_parameters() if p.requires_grad}
    assert stored.keys() == trainable | {"clip.visual.class_embedding"}
    other = copy_of(encoder, config)
    other.load_adapters(path)
    same_features(encoder, other, 0.0)
    # Saved from half precision, they still belong to the same base model.
    encoder.bfloat16().save_adapters(path)
    other.load_adapters(path)
    same_features(encoder.float(), other, 0.02)


def test_temporal_layers_see_the_order_and_belong_to_the_adapters(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    encoder = build(config, temporal_layers=2)
    video, _ = random_video()
    mask = torch.ones(3, FRAMES, dtype=torch.bool)
    features = encoder.encode_video(video, mask)
    reversed_features = encoder.encode_video(video.flip(1), mask).flip(1)
    assert relative_error(reversed_features, features) > 1e-3
    path = tmp_path / "adapters.safetensors"
    encoder.save_adapters(path)
    other = copy_of(encoder, config, temporal_layers=2)
    other.load_adapters(path)
    same_features(encoder, other, 0.0)
    with pytest.raises(AdaptersError, match="temporal"):
        copy_of(encoder, config).load_adapters(path)
    # The published model has none: they stay as they are.
    plain = build(config)
    plain.clip.load_state_dict(encoder.clip.state_dict())
    before = {name: value.clone() for name, value in encoder.temporal.state_dict().items()}
    encoder.load_official_state_dict(official_state(plain))
    assert all(torch.equal(v, before[n]) for n, v in encoder.temporal.state_dict().items())


def test_adapters_of_another_model_are_refused(encoder: DiscoVLAEncoder, tmp_path: Path) -> None:
    path = tmp_path / "adapters.safetensors"
    encoder.save_adapters(path)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    config = write_config(tmp_path)

    def refused(encoder: DiscoVLAEncoder, reason: str) -> None:
        with pytest.raises(AdaptersError, match=reason) as error:
            encoder.load_adapters(path)
        assert str(path) in str(error.value)

    refused(copy_of(encoder, write_config(tmp_path, "other")), "of 'small'.* built on 'other'")
    refused(build(config), "other pretrained weights of 'small'")
    refused(copy_of(encoder, config, lora_rank=4), r"lora.a has shape \(8, 32\), here \(4, 32\)")
    refused(copy_of(encoder, config, vision_fusion_blocks=1), "no such weights here: .*fusion")
    refused(copy_of(encoder, config, vision_fusion_blocks=3), "missing: .*fusion")
    safetensors.torch.save_file({"x": torch.ones(1)}, path)
    refused(encoder, "not an adapter file")
    path.write_bytes(b"something else")
    refused(encoder, "not a readable safetensors file")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        encoder.load_adapters(tmp_path / "nowhere")
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())


def test_a_failed_save_leaves_the_old_file(
    encoder: DiscoVLAEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "adapters.safetensors"
    encoder.save_adapters(path)
    old = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with torch.no_grad():
        encoder.vision_adapters[0].lora.a.zero_()
    with pytest.raises(OSError, match="disk full"):
        encoder.save_adapters(path)
    assert path.read_bytes() == old
    assert sorted(p.name for p in tmp_path.glob("adapters*")) == [path.name]


def test_merged_lora(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    encoder = build(config).double()
    merged = build(config).double()
    merged.load_state_dict(encoder.state_dict())
    plain = merged.clip.visual.transformer.resblocks[0].attn.in_proj_weight.clone()
    assert merged.merge_lora() is merged
    assert merged.is_merged
    same_features(encoder, merged, 1e-12)
    changed = merged.clip.visual.transformer.resblocks[0].attn.in_proj_weight
    assert relative_error(changed, plain) > 1e-2
    assert not merged.training
    assert not any(p.requires_grad for p in merged.parameters())
    merged.merge_lora()
    assert torch.equal(changed, merged.clip.visual.transformer.resblocks[0].attn.in_proj_weight)
    path = tmp_path / "adapters.safetensors"
    encoder.save_adapters(path)
    for refused in (
        lambda: merged.train(),
        lambda: merged.save_adapters(path),
        lambda: merged.load_adapters(path),
        lambda: merged.load_official_state_dict({}),
    ):
        with pytest.raises(RuntimeError, match="LoRA is merged"):
            refused()
    # Its weights cannot be taken for those of an encoder that would add LoRA once more.
    with pytest.raises(RuntimeError, match=r"Missing key.*lora"):
        encoder.load_state_dict(merged.state_dict())


def official_state(encoder: DiscoVLAEncoder) -> dict[str, Tensor]:
    towers = {"vision_adapters": "clip.visual.transformer", "text_adapters": "clip.transformer"}
    parameters = {
        "lora.a": "LoRA_a",
        "lora.b": "LoRA_b",
        "fusion.down.weight": "down_weight",
        "fusion.down.bias": "down_bias",
        "fusion.up.weight": "up_weight",
        "fusion.up.bias": "up_bias",
    }
    state = {}
    for name, value in encoder.state_dict().items():
        if not name.startswith("clip."):
            tower, block, parameter = name.split(".", 2)
            name = f"{towers[tower]}.resblocks.{block}.attn.TVPt_{parameters[parameter]}"
        state[name] = value
    return state


@pytest.mark.parametrize("prefix", ["", "module."])
def test_published_names(encoder: DiscoVLAEncoder, tmp_path: Path, prefix: str) -> None:
    official = {prefix + name: value for name, value in official_state(encoder).items()}
    config = write_config(tmp_path)
    other = build(config)
    other.load_official_state_dict(official)
    same_features(encoder, other, 0.0)
    other = copy_of(encoder, config)
    other.load_official_state_dict({n: v for n, v in official.items() if "TVPt" in n})
    same_features(encoder, other, 0.0)


def test_published_names_that_do_not_fit(encoder: DiscoVLAEncoder) -> None:
    official = official_state(encoder)
    name = "clip.transformer.resblocks.2.attn.TVPt_up_bias"
    with pytest.raises(KeyError, match=r"lacks 1 weights: text_adapters\.2\.fusion\.up\.bias"):
        encoder.load_official_state_dict({n: v for n, v in official.items() if n != name})
    with pytest.raises(KeyError, match=r"lacks 1 weights: clip\.logit_scale"):
        encoder.load_official_state_dict(
            {n: v for n, v in official.items() if n != "clip.logit_scale"}
        )
    with pytest.raises(ValueError, match=r"text_adapters.2.fusion.up.bias has shape \(7,\)"):
        encoder.load_official_state_dict(official | {name: torch.zeros(7)})
    for unknown in ("clip.extra", "clip.transformer.resblocks.0.attn.TVPt_up_bias"):
        with pytest.raises(ValueError, match="no such weights here"):
            encoder.load_official_state_dict(official | {unknown: torch.zeros(1)})
    for unknown in ("agent.psi", "clip.transformer.resblocks.0.attn.TVPt_new"):
        with pytest.raises(ValueError, match="not a parameter name of the published DiscoVLA"):
            encoder.load_official_state_dict(official | {unknown: torch.zeros(1)})
