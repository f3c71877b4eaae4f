from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from garevla.encoders import ClipEncoder
from garevla.encoders.discovla import AdaptersError, DiscoVLAEncoder
from tests.head.test_memory import LargestTensor
from tests.helpers import relative_error

FRAMES, LENGTH, VOCABULARY = 5, 12, 60


def write_config(folder: Path, name: str = "small", **changes: dict[str, Any] | bool) -> str:
    config = {
        "embed_dim": 24,
        "quick_gelu": changes.get("quick_gelu", True),
        "vision_cfg": {
            "image_size": 32,
            "layers": 3,
            "width": 48,
            "head_width": 24,
            "patch_size": 16,
            **changes.get("vision_cfg", {}),
        },
        "text_cfg": {
            "context_length": LENGTH,
            "vocab_size": VOCABULARY,
            "width": 32,
            "heads": 2,
            "layers": 3,
            **changes.get("text_cfg", {}),
        },
    }
    path = folder / f"{name}.json"
    path.write_text(json.dumps(config))
    return str(path)


def build(config: str, *, trained: bool = True, **arguments: Any) -> DiscoVLAEncoder:
    arguments = {"vision_fusion_blocks": 2, "text_fusion_blocks": 1, **arguments}
    encoder = DiscoVLAEncoder(config, None, context_length=LENGTH, **arguments)
    if trained:
        with torch.no_grad():
            for parameter in encoder.parameters():
                if parameter.requires_grad:
                    parameter.normal_(std=0.3)
    return encoder


@pytest.fixture
def encoder(tmp_path: Path) -> DiscoVLAEncoder:
    return build(write_config(tmp_path))


def random_video(size: int = 32) -> tuple[Tensor, Tensor]:
    mask = torch.ones(3, FRAMES, dtype=torch.bool)
    mask[0, 3:] = False
    mask[2, [0, 2]] = False
    return torch.randn(3, FRAMES, 3, size, size), mask


def random_tokens(*shape: int) -> Tensor:
    """Start, words, EOT, then padding."""
    tokens = torch.randint(1, VOCABULARY - 2, (*shape, LENGTH))
    eot = torch.randint(1, LENGTH, (*shape, 1))
    tokens[..., 0] = VOCABULARY - 2
    tokens = tokens.masked_fill(torch.arange(LENGTH) > eot, 0)
    return tokens.scatter(-1, eot, VOCABULARY - 1)


@pytest.mark.parametrize("model_name", ["ViT-B-32", "ViT-B-16", "ViT-B-32-quickgelu"])
def test_trainable_parameters(model_name: str) -> None:
    with torch.device("meta"):
        encoder = DiscoVLAEncoder(model_name, None)
    trainable = {n: p.numel() for n, p in encoder.named_parameters() if p.requires_grad}
    assert sum(trainable.values()) == 561_200
    assert not any(name.startswith("clip.") for name in trainable)


def test_vit_large() -> None:
    with torch.device("meta"):
        encoder = DiscoVLAEncoder("ViT-L-14", None)
    trainable = sum(p.numel() for p in encoder.parameters() if p.requires_grad)
    lora = 24 * 8 * 4 * 1024 + 12 * 8 * 4 * 768
    adapters = 4 * (16 * 1024 + 8 + 1024) + 2 * (16 * 768 + 8 + 768)
    assert trainable == lora + adapters
    assert (encoder.dim, encoder.image_size) == (768, 224)


CONFIGS = {
    "quickgelu": {"quick_gelu": True},
    "gelu": {"quick_gelu": False},
    "layer scale, linear projection, no ln_pre": {
        "vision_cfg": {"ls_init_value": 0.3, "no_ln_pre": True, "mlp_ratio": 2.0},
        "text_cfg": {"ls_init_value": 0.2, "proj_bias": True},
    },
}


@pytest.mark.parametrize("changes", CONFIGS.values(), ids=CONFIGS.keys())
def test_untrained_without_fusion_it_is_clip(changes: dict[str, Any], tmp_path: Path) -> None:
    config = write_config(tmp_path, **changes)
    encoder = build(config, trained=False, vision_fusion_blocks=0, text_fusion_blocks=0)
    plain = ClipEncoder(config, None, temporal_layers=0, context_length=LENGTH)
    plain.clip.load_state_dict(encoder.clip.state_dict())
    video, mask = random_video()
    tokens = random_tokens(4)
    assert relative_error(encoder.encode_text(tokens), plain.encode_text(tokens)) < 1e-5
    assert relative_error(encoder.encode_video(video, mask), plain.encode_video(video, mask)) < 1e-5
    captions = random_tokens(3, FRAMES)
    features = encoder.encode_pseudo_captions(captions, mask)
    assert relative_error(features[mask], plain.encode_text(captions[mask])) < 1e-5
    assert torch.equal(encoder.logit_scale, plain.logit_scale)


def test_untrained_fusion_of_one_frame_is_clip(tmp_path: Path) -> None:
    encoder = build(write_config(tmp_path), trained=False)
    video, tokens = torch.randn(3, 1, 3, 32, 32), random_tokens(3)
    mask = torch.ones(3, 1, dtype=torch.bool)
    plain = encoder.clip.encode_image(video[:, 0])
    assert relative_error(encoder.encode_video(video, mask)[:, 0], plain) < 1e-5
    captions = encoder.encode_pseudo_captions(tokens.unsqueeze(1), mask)
    assert relative_error(captions[:, 0], encoder.encode_text(tokens)) < 1e-5


def test_untrained_fusion_sees_the_other_frames(tmp_path: Path) -> None:
    encoder = build(write_config(tmp_path), trained=False)
    video = torch.randn(1, 2, 3, 32, 32)
    mask = torch.ones(1, 2, dtype=torch.bool)
    before = encoder.encode_video(video, mask)[0, 0]
    video[0, 1] = torch.randn(3, 32, 32)
    assert relative_error(encoder.encode_video(video, mask)[0, 0], before) > 1e-3
    tokens = random_tokens(1, 2)
    before = encoder.encode_pseudo_captions(tokens, mask)[0, 0]
    tokens[0, 1] = random_tokens(1)
    assert relative_error(encoder.encode_pseudo_captions(tokens, mask)[0, 0], before) > 1e-3


def test_videos_and_order_of_frames(encoder: DiscoVLAEncoder) -> None:
    """Videos do not see each other, and frames have no positions."""
    video, mask = random_video()
    features = encoder.encode_video(video, mask)
    order = torch.tensor([3, 0, 4, 2, 1])
    shuffled = encoder.encode_video(video[:, order], mask[:, order])
    assert relative_error(shuffled, features[:, order]) < 1e-5
    alone = torch.cat([encoder.encode_video(video[i : i + 1], mask[i : i + 1]) for i in range(3)])
    assert relative_error(alone, features) < 1e-5


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), 1e4])
def test_padding_takes_no_part(encoder: DiscoVLAEncoder, poison: float) -> None:
    video, mask = random_video()
    tokens = random_tokens(3, FRAMES)
    poisoned = video.clone(), tokens.clone()
    poisoned[0][~mask] = poison
    poisoned[1][~mask] = -1

    def features_and_gradients(video: Tensor, tokens: Tensor) -> list[Tensor]:
        encoder.zero_grad()
        video = video.clone().requires_grad_()
        features = encoder.encode_video(video, mask), encoder.encode_pseudo_captions(tokens, mask)
        sum((f * torch.randn(24)).square().sum() for f in features).backward()
        parameters = [p.grad.clone() for p in encoder.parameters() if p.requires_grad]
        assert all(gradient.norm() > 0 for gradient in parameters)
        assert not any(f[~mask].any() for f in features)
        assert not video.grad[~mask].any()
        return [*features, video.grad, *parameters]

    torch.manual_seed(1)
    clean = features_and_gradients(video, tokens)
    torch.manual_seed(1)
    for one, other in zip(clean, features_and_gradients(*poisoned), strict=True):
        assert torch.equal(one, other)


def test_what_follows_eot_takes_no_part(encoder: DiscoVLAEncoder) -> None:
    tokens = random_tokens(2, FRAMES)
    mask = torch.ones(2, FRAMES, dtype=torch.bool)
    after = torch.arange(LENGTH) > tokens.argmax(dim=-1, keepdim=True)
    other = torch.where(after, torch.randint(1, 50, tokens.shape), tokens)
    assert not torch.equal(other, tokens)
    for encode in (
        lambda t: encoder.encode_pseudo_captions(t, mask),
        lambda t: encoder.encode_text(t.flatten(0, 1)),
    ):
        assert torch.equal(encode(tokens), encode(other))


def test_video_level_has_one_query_a_frame(tmp_path: Path) -> None:
    """With the arithmetic written out, no scores of all tokens against all tokens of a video."""
    shape = {"image_size": 64, "patch_size": 4, "width": 16, "head_width": 8, "layers": 2}
    encoder = build(write_config(tmp_path, vision_cfg=shape), max_frames=12)
    frames, tokens, heads = 12, 64 * 64 // 16 + 1, 2
    video, mask = torch.randn(1, frames, 3, 64, 64), torch.ones(1, frames, dtype=torch.bool)
    with sdpa_kernel(SDPBackend.MATH), LargestTensor() as largest:
        encoder.encode_video(video, mask).sum().backward()
    image_level = heads * frames * tokens**2
    # Less would mean that the watch sees no scores at all.
    assert image_level <= largest.elements < heads * (frames * tokens) ** 2 / 4


def test_only_the_readout_of_the_last_block_is_computed(encoder: DiscoVLAEncoder) -> None:
    shapes: dict[str, list[int]] = {}
    for name, block in (
        ("first", encoder.clip.visual.transformer.resblocks[0]),
        ("last", encoder.clip.visual.transformer.resblocks[-1]),
        ("last text", encoder.clip.transformer.resblocks[-1]),
    ):
        block.mlp.register_forward_hook(
            lambda _, inputs, __, name=name: shapes.update({name: list(inputs[0].shape)})
        )
    video, mask = random_video()
    encoder.encode_video(video, mask)
    encoder.encode_text(random_tokens(4))
    valid = int(mask.sum())
    assert shapes == {"first": [valid, 5, 48], "last": [valid, 1, 48], "last text": [4, 1, 32]}


def test_gradients_reach_the_adapters_alone(encoder: DiscoVLAEncoder) -> None:
    encoder.train()
    assert not any(module.training for module in encoder.clip.modules())
    assert encoder.vision_adapters.training
    video, mask = random_video()
    encoder.encode_video(video, mask).sum().backward()
    encoder.encode_text(random_tokens(2)).sum().backward()
    assert all(p.grad is None for p in encoder.clip.parameters())
    assert not encoder.logit_scale.requires_grad
    # Real captions pass the fusing text blocks without fusion.
    fusion = encoder.text_adapters[-1].fusion
    assert all(p.grad is None for p in fusion.parameters())


def test_patch_dropout_stays_off(tmp_path: Path) -> None:
    encoder = build(write_config(tmp_path, vision_cfg={"patch_dropout": 0.5})).train()
    video, mask = random_video()
    assert torch.equal(encoder.encode_video(video, mask), encoder.encode_video(video, mask))


def test_bfloat16_autocast(encoder: DiscoVLAEncoder) -> None:
    with torch.no_grad():
        for parameter in encoder.parameters():
            if parameter.requires_grad:
                parameter.mul_(0.1)
    video, mask = random_video()
    tokens = random_tokens(3, FRAMES)

    def encode() -> list[Tensor]:
        return [
            encoder.encode_video(video, mask),
            encoder.encode_pseudo_captions(tokens, mask),
            encoder.encode_text(tokens[:, 0]),
        ]

    exact = encode()
    with torch.autocast("cpu", torch.bfloat16):
        rounded = encode()
    for a, b in zip(exact, rounded, strict=True):
        assert relative_error(b, a) < 0.05
    sum(f.float().sum() for f in rounded).backward()
    assert all(p.grad.isfinite().all() for p in encoder.parameters() if p.requires_grad)


def test_published_start(tmp_path: Path) -> None:
    encoder = build(write_config(tmp_path), trained=False)
    for adapter in [*encoder.vision_adapters, *encoder.text_adapters]:
        assert not adapter.lora.b.any()
        assert 0 < adapter.lora.a.abs().max() <= adapter.lora.a.shape[1] ** -0.5
    fused = [a.fusion for a in encoder.vision_adapters]
    assert [f is not None for f in fused] == [False, True, True]
    assert not fused[-1].up.weight.any()
    assert not fused[-1].up.bias.any()
    assert fused[-1].down.weight.any()
    assert 0 < fused[-1].down.bias.abs().max() < 1e-5


@pytest.mark.parametrize(
    ("model_name", "reason"),
    [
        ("RN50", "ResNet"),
        ("ViT-B-16-SigLIP", "timm"),
        ("EVA02-B-16", "timm"),
        ("roberta-ViT-B-32", "Hugging Face text tower"),
    ],
)
def test_other_models_are_refused(model_name: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as error:
        DiscoVLAEncoder(model_name, None)
    assert model_name in str(error.value)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"vision_cfg": {"pool_type": "avg"}}, "not taken at CLS"),
        ({"vision_cfg": {"attentional_pool": True, "attn_pooler_heads": 2}}, "not taken at CLS"),
        ({"vision_cfg": {"scale_fc": True}}, "image blocks that are not CLIP's"),
        ({"text_cfg": {"qk_norm": True}}, "text blocks that are not CLIP's"),
    ],
)
def test_other_blocks_are_refused(changes: dict[str, Any], reason: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=reason) as error:
        build(write_config(tmp_path, **changes))
    assert "small.json" in str(error.value)


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.float32])
def test_masks_of_any_dtype_are_alike(encoder: DiscoVLAEncoder, dtype: torch.dtype) -> None:
    (video, mask), tokens = random_video(), random_tokens(3, FRAMES)
    mask[1, 3:] = False
    for encode, inputs in (
        (encoder.encode_video, video),
        (encoder.encode_pseudo_captions, tokens),
    ):
        expected = encode(inputs, mask)
        assert torch.equal(encode(inputs, mask.to(dtype)), expected)
        assert expected[1, 3:].eq(0).all()


def test_wrong_arguments_are_named(encoder: DiscoVLAEncoder, tmp_path: Path) -> None:
    video, mask = random_video()
    tokens = random_tokens(3, FRAMES)
    with pytest.raises(ValueError, match=r"video must be .*\(B, F, 3, 32, 32\)"):
        encoder.encode_video(video[..., :31, :], mask)
    with pytest.raises(ValueError, match=r"tokens must be int64 of shape \(A, L\)"):
        encoder.encode_text(tokens)
    with pytest.raises(ValueError, match=r"tokens must be int64 of shape \(B, F, L\)"):
        encoder.encode_pseudo_captions(tokens[0], mask)
    with pytest.raises(ValueError, match=f"{LENGTH + 1} tokens per text"):
        encoder.encode_text(torch.zeros(1, LENGTH + 1, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"frame_mask must have shape \(B, F\) = \(3, 5\)"):
        encoder.encode_pseudo_captions(tokens, mask[:, :4])
    with pytest.raises(ValueError, match="frame_mask must hold only 0"):
        encoder.encode_pseudo_captions(tokens, mask.float() / 2)
    mask[1] = False
    with pytest.raises(ValueError, match=r"no valid frame, at batch positions \[1\]"):
        encoder.encode_pseudo_captions(tokens, mask)
    config = write_config(tmp_path)
    with pytest.raises(ValueError, match="vision_fusion_blocks must be between 0 and 3, got 4"):
        build(config, vision_fusion_blocks=4)
    with pytest.raises(ValueError, match="text_fusion_blocks must be between 0 and 3, got -1"):
        build(config, text_fusion_blocks=-1)
    with pytest.raises(ValueError, match="lora_rank and adapter_width must be at least 1"):
        build(config, lora_rank=0)


def same_features(one: DiscoVLAEncoder, other: DiscoVLAEncoder, tolerance: float) -> None:
    video, mask = random_video()
    dtype = one.clip.positional_embedding.dtype
    tokens = random_tokens(3, FRAMES)
    for encode in (
        lambda encoder: encoder.encode_video(video.to(dtype), mask),
        lambda encoder: encoder.encode_pseudo_captions(tokens, mask),
        lambda encoder: encoder.encode_text(tokens[:, 0]),
    ):
        assert relative_error(encode(other), encode(one)) <= tolerance


def copy_of(encoder: DiscoVLAEncoder, config: str, **arguments: Any) -> DiscoVLAEncoder:
    """Another encoder on the same CLIP weights, with adapters of its own."""
    other = build(config, **arguments)
    other.clip.load_state_dict(encoder.clip.state_dict())
    return other


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


def test_words_are_features_at_every_token(encoder: DiscoVLAEncoder) -> None:
    tokens = random_tokens(3)
    texts = encoder.texts_of(tokens, encoder.encode_words(tokens))
    assert texts.word_features.shape == (3, tokens.shape[1], encoder.dim)
    assert relative_error(texts.text_features, encoder.encode_text(tokens)) < 1e-5
