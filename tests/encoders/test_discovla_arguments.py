"""Models, blocks and inputs that DiscoVLA's encoder takes, or refuses by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from garevla.encoders.discovla import DiscoVLAEncoder
from tests.encoders.small_discovla import (
    FRAMES,
    LENGTH,
    build,
    random_tokens,
    random_video,
    write_config,
)


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
