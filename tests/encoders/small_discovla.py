"""Small DiscoVLA encoders with random weights, and random input of theirs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from garevla.encoders.discovla import DiscoVLAEncoder
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


def copy_of(encoder: DiscoVLAEncoder, config: str, **arguments: Any) -> DiscoVLAEncoder:
    """Another encoder on the same CLIP weights, with adapters of its own."""
    other = build(config, **arguments)
    other.clip.load_state_dict(encoder.clip.state_dict())
    return other


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
