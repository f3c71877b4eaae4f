"""The published DiscoVLA's numbers: features, similarities, losses and every gradient.

The published encoder ignores the frame mask: padded frames and their captions are keys and queries
like any other, and candidates of the frame level; only the mean over frames leaves them out. The
golden masked case is therefore computed with all frames valid, except in that mean.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from garevla import info_nce
from garevla.discovla.losses import DiscoVLALoss, alignment_distillation
from garevla.discovla.similarity import frame_level_similarity, mean_frame_similarity
from garevla.encoders.discovla import DiscoVLAEncoder
from garevla.encoders.discovla.weights import from_official_name
from tests.helpers import GOLDEN, Golden, relative_error

FILES = sorted(GOLDEN.glob("discovla_*.npz"))


class DiscoVLAGolden(Golden):
    def names(self, prefix: str) -> list[str]:
        return [name for name in self._arrays if name.startswith(prefix)]

    def float(self, name: str) -> Tensor:
        return self[name].float()

    def encoder(self, folder: Path) -> DiscoVLAEncoder:
        meta = self.meta
        config = {
            "embed_dim": meta["embed_dim"],
            "quick_gelu": True,
            "vision_cfg": {
                "image_size": meta["image_size"],
                "patch_size": meta["patch"],
                "width": meta["vision_width"],
                "layers": meta["vision_layers"],
                "head_width": meta["vision_width"] // meta["vision_heads"],
            },
            "text_cfg": {
                "context_length": meta["context"],
                "vocab_size": meta["vocab"],
                "width": meta["text_width"],
                "heads": meta["text_heads"],
                "layers": meta["text_layers"],
            },
        }
        path = folder / "golden.json"
        path.write_text(json.dumps(config))
        encoder = DiscoVLAEncoder(
            str(path),
            None,
            lora_rank=meta["lora"],
            adapter_width=meta["lora"],
            vision_fusion_blocks=meta["H_V"],
            text_fusion_blocks=meta["H_L"],
            context_length=meta["context"],
        )
        encoder.load_official_state_dict({name: self[name] for name in self.names("clip.")})
        return encoder


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def golden(request: pytest.FixtureRequest) -> DiscoVLAGolden:
    return DiscoVLAGolden(request.param)


def forward(golden: DiscoVLAGolden, encoder: DiscoVLAEncoder) -> dict[str, Tensor]:
    """What the golden file stores, under its names; see the head of this file for the mask."""
    frame_mask = golden["video_mask"].bool()
    leaky = torch.ones_like(frame_mask)
    text = encoder.encode_text(golden["text_ids"].long())
    frames = encoder.encode_video(golden.float("video"), leaky)
    captions = encoder.encode_pseudo_captions(golden["frame_text_ids"].long(), leaky)
    video_similarity = mean_frame_similarity(text, frames, frame_mask)
    scale = encoder.logit_scale
    frame_similarity = frame_level_similarity(captions, frames, scale)
    loss_video = info_nce(video_similarity, scale)
    loss_frame = info_nce(frame_similarity, scale)
    loss_distill = alignment_distillation(frame_similarity, video_similarity, scale)
    return {
        "text_embed": text,
        "frame_embed": frames,
        "frame_text_embed": captions,
        "video_similarity": video_similarity,
        "frame_similarity": frame_similarity,
        "loss_video": loss_video,
        "loss_frame": loss_frame,
        "loss_distill": loss_distill,
        "loss": loss_video + golden.meta["alpha"] * loss_frame + golden.meta["beta"] * loss_distill,
    }


def gradients(golden: DiscoVLAGolden, encoder: DiscoVLAEncoder) -> dict[str, Tensor]:
    forward(golden, encoder)["loss"].backward()
    return {name: p.grad for name, p in encoder.named_parameters() if p.requires_grad}


def check_gradients(golden: DiscoVLAGolden, found: dict[str, Tensor]) -> None:
    stored = {
        from_official_name("clip." + name.removeprefix("grad.")): golden[name]
        for name in golden.names("grad.")
    }
    assert found.keys() == stored.keys()
    for name, gradient in found.items():
        assert relative_error(gradient, stored[name]) < 1e-4, name


def test_all_golden_files_are_here() -> None:
    assert len(FILES) == 2
    masked = [not bool(Golden(path)["video_mask"].all()) for path in FILES]
    assert sorted(masked) == [False, True]


def test_values(golden: DiscoVLAGolden, tmp_path: Path) -> None:
    encoder = golden.encoder(tmp_path)
    assert abs(encoder.logit_scale.item() - golden.meta["logit_scale"]) < 1e-5
    for name, value in forward(golden, encoder).items():
        assert relative_error(value, golden[name]) < 1e-5, name


def test_gradients(golden: DiscoVLAGolden, tmp_path: Path) -> None:
    check_gradients(golden, gradients(golden, golden.encoder(tmp_path)))


@pytest.mark.parametrize("factor", [0.0, -1.0, 2.0], ids=["zero", "negate", "double"])
def test_a_wrong_gradient_is_noticed(factor: float, tmp_path: Path) -> None:
    golden = DiscoVLAGolden(FILES[1])
    found = gradients(golden, golden.encoder(tmp_path))
    for name in found:
        with pytest.raises(AssertionError):
            check_gradients(golden, found | {name: factor * found[name]})


def test_loss_module(tmp_path: Path) -> None:
    golden = DiscoVLAGolden(FILES[1])
    encoder = golden.encoder(tmp_path)
    frame_mask = golden["video_mask"].bool()
    assert frame_mask.all()
    out = DiscoVLALoss(frame_weight=golden.meta["alpha"], distillation_weight=golden.meta["beta"])(
        encoder.encode_text(golden["text_ids"].long()),
        encoder.encode_video(golden.float("video"), frame_mask),
        encoder.logit_scale,
        frame_mask,
        encoder.encode_pseudo_captions(golden["frame_text_ids"].long(), frame_mask),
        return_similarity=True,
    )
    for value, name in (
        (out.loss, "loss"),
        (out.contrastive, "loss_video"),
        (out.frame, "loss_frame"),
        (out.distillation, "loss_distill"),
        (out.similarity, "video_similarity"),
    ):
        assert relative_error(value, golden[name]) < 1e-5, name


def test_padded_frames_are_left_out_here(tmp_path: Path) -> None:
    """With the mask, a video's features are those of its valid frames alone: not as published."""
    golden = DiscoVLAGolden(FILES[0])
    encoder = golden.encoder(tmp_path)
    mask = golden["video_mask"].bool()
    assert mask[0].tolist() == [True] * 4 + [False]
    with torch.no_grad():
        for encode, inputs, published in (
            (encoder.encode_video, golden.float("video"), golden["frame_embed"]),
            (
                encoder.encode_pseudo_captions,
                golden["frame_text_ids"].long(),
                golden["frame_text_embed"],
            ),
        ):
            features = encode(inputs, mask)
            alone = encode(inputs[:1, :4], mask[:1, :4])
            assert relative_error(features[:1, :4], alone) < 1e-5
            assert relative_error(features[1:], published[1:]) < 1e-5
            assert relative_error(features[0, :4], published[0, :4]) > 1e-2
