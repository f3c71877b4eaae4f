"""DiscoVLA's encoder: CLIP, low-rank adapters, and fusion of the frames."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from garevla.encoders import ClipEncoder
from garevla.encoders.discovla import DiscoVLAEncoder
from tests.encoders.small_discovla import (
    FRAMES,
    LENGTH,
    build,
    random_tokens,
    random_video,
    write_config,
)
from tests.head.test_memory import LargestTensor
from tests.helpers import relative_error


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


def test_words_are_features_at_every_token(encoder: DiscoVLAEncoder) -> None:
    tokens = random_tokens(3)
    texts = encoder.texts_of(tokens, encoder.encode_words(tokens))
    assert texts.word_features.shape == (3, tokens.shape[1], encoder.dim)
    assert relative_error(texts.text_features, encoder.encode_text(tokens)) < 1e-5
