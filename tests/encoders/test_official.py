"""Checkpoints of the published code: numbers of a real one, and made-up ones by plain formulas."""

from __future__ import annotations

import argparse
import json
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import garevla
from garevla.encoders import ClipEncoder, PretrainedWeightsError, load_official
from garevla.reference import gare as reference
from tests.helpers import GOLDEN, Golden, random_psi, relative_error

WIDTH, HEADS, FRAMES, POSITIONS = 128, 2, 6, 9
CONFIG = {
    "embed_dim": WIDTH,
    "quick_gelu": True,
    "vision_cfg": {
        "image_size": 32,
        "layers": 2,
        "width": WIDTH,
        "head_width": WIDTH // HEADS,
        "patch_size": 16,
    },
    "text_cfg": {
        "context_length": POSITIONS,
        "vocab_size": 40,
        "width": WIDTH,
        "heads": HEADS,
        "layers": 2,
    },
}
SIZES = {"max_frames": FRAMES, "context_length": POSITIONS}


def normed(x: Tensor, weights: dict[str, Tensor], name: str, eps: float = 1e-5) -> Tensor:
    centered = x - x.mean(dim=-1, keepdim=True)
    scaled = centered / (centered.square().mean(dim=-1, keepdim=True) + eps).sqrt()
    return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def blocks(x: Tensor, weights: dict[str, Tensor], tower: str, bias: Tensor, eps: float) -> Tensor:
    """CLIP's pre-norm blocks: x (B, N, D), bias of the attention's logits (B or 1, N, N)."""
    layer = 0
    while f"{tower}.resblocks.{layer}.ln_1.weight" in weights:
        name = f"{tower}.resblocks.{layer}"
        y = normed(x, weights, f"{name}.ln_1", eps)
        y = y @ weights[f"{name}.attn.in_proj_weight"].T + weights[f"{name}.attn.in_proj_bias"]
        q, k, v = (part.unflatten(2, (HEADS, -1)).transpose(1, 2) for part in y.chunk(3, dim=2))
        attention = q @ k.mT / math.sqrt(q.shape[-1]) + bias.unsqueeze(1)
        y = (attention.softmax(dim=-1) @ v).transpose(1, 2).flatten(2)
        x = x + F.linear(
            y, weights[f"{name}.attn.out_proj.weight"], weights[f"{name}.attn.out_proj.bias"]
        )
        y = normed(x, weights, f"{name}.ln_2", eps)
        y = F.linear(y, weights[f"{name}.mlp.c_fc.weight"], weights[f"{name}.mlp.c_fc.bias"])
        y = y * torch.sigmoid(1.702 * y)
        x = x + F.linear(
            y, weights[f"{name}.mlp.c_proj.weight"], weights[f"{name}.mlp.c_proj.bias"]
        )
        layer += 1
    return x


def plain_text(tokens: Tensor, weights: dict[str, Tensor]) -> Tensor:
    length = tokens.shape[1]
    x = weights["clip.token_embedding.weight"][tokens]
    x = x + weights["clip.positional_embedding"][:length]
    causal = torch.full((1, length, length), -torch.inf, dtype=x.dtype).triu(1)
    x = normed(blocks(x, weights, "clip.transformer", causal, 1e-5), weights, "clip.ln_final")
    ends = tokens.argmax(dim=1)
    return x[torch.arange(len(x)), ends] @ weights["clip.text_projection"]


def plain_frames(video: Tensor, mask: Tensor, weights: dict[str, Tensor]) -> Tensor:
    """All frames, padded ones, too, which are no keys of the temporal transformer."""
    x = F.conv2d(video.flatten(0, 1), weights["clip.visual.conv1.weight"], stride=16)
    x = x.flatten(2).mT
    start = weights["clip.visual.class_embedding"].expand(len(x), 1, -1)
    x = torch.cat([start, x], dim=1) + weights["clip.visual.positional_embedding"]
    x = normed(x, weights, "clip.visual.ln_pre")
    x = blocks(x, weights, "clip.visual.transformer", x.new_zeros(1, 1, 1), 1e-5)
    x = normed(x[:, 0], weights, "clip.visual.ln_post") @ weights["clip.visual.proj"]
    frames = x.unflatten(0, mask.shape)
    if "frame_position_embeddings.weight" not in weights:
        return frames
    hidden = frames + weights["frame_position_embeddings.weight"][: mask.shape[1]]
    bias = (1.0 - mask.to(frames.dtype)).unsqueeze(1) * -1e6
    return frames + blocks(hidden, weights, "transformerClip", bias, 1e-12)


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("official") / "small.json"
    path.write_text(json.dumps(CONFIG))
    return path


@pytest.fixture(scope="module")
def weights(model_file: Path) -> dict[str, Tensor]:
    """Of GARE, in the published layout; numbers made up."""
    torch.manual_seed(1)
    encoder = ClipEncoder(str(model_file), None, temporal_layers=3, **SIZES)
    psi = garevla.CrossAttentionPsi(WIDTH)
    found = {f"clip.{name}": value for name, value in encoder.clip.state_dict().items()}
    found["frame_position_embeddings.weight"] = torch.randn(POSITIONS, WIDTH)
    for name, value in encoder.temporal.transformer.state_dict().items():
        found[f"transformerClip.{name}"] = value
    found |= {f"psi.{name}": value for name, value in psi.state_dict().items()}
    for name, value in found.items():
        scale = WIDTH**-0.5 if value.dim() > 1 else 0.2
        around = 1.0 if "ln_" in name or "norm" in name else 0.0
        found[name] = scale * torch.randn_like(value) + around * name.endswith(".weight")
    found |= {f"agent.{name}": x for name, x in found.items() if name.startswith("psi.")}
    found["clip.logit_scale"] = torch.tensor(4.0)
    unused = ("weight_fc.0.weight", "psi.log_std_proj.weight", "psi.layers.0.mlp.0.weight")
    return found | {name: torch.ones(3) for name in unused}


@pytest.fixture
def save(tmp_path: Path) -> Callable[[Any], Path]:
    def write(content: Any) -> Path:
        torch.save(content, tmp_path / "official.pth")
        return tmp_path / "official.pth"

    return write


@pytest.fixture
def batch() -> tuple[Tensor, Tensor, Tensor]:
    """Tokens (4, L), videos (3, F, 3, 32, 32) with zeros for padding, and their mask."""
    tokens = torch.randint(1, 38, (4, POSITIONS))
    tokens[:, 0] = 38
    for row, end in enumerate((8, 3, 5, 2)):
        tokens[row, end], tokens[row, end + 1 :] = 39, 0
    mask = torch.arange(FRAMES) < torch.tensor([[6], [2], [5]])
    return tokens, torch.randn(3, FRAMES, 3, 32, 32) * mask[..., None, None, None], mask


def without(weights: dict[str, Tensor], *prefixes: str) -> dict[str, Tensor]:
    return {name: value for name, value in weights.items() if not name.startswith(prefixes)}


CLIP4CLIP = ("psi.", "agent.", "weight_fc.")


@pytest.mark.parametrize("padding", ["ignored", "published"])
def test_gare_by_the_formulas(padding, weights, model_file, save, batch) -> None:
    tokens, video, mask = batch
    encoder, psi = load_official(save(weights), str(model_file), **SIZES, padding=padding)
    assert not encoder.training
    assert not psi.training
    exact = {name: value.double() for name, value in weights.items()}
    text, frames = plain_text(tokens, exact), plain_frames(video.double(), mask, exact)
    with torch.no_grad():
        encoded = encoder.encode_video(video, mask)
        assert relative_error(encoder.encode_text(tokens), text) < 1e-5
        assert relative_error(encoded[mask], frames[mask]) < 1e-5
        score = garevla.gare_similarity(encoder.encode_text(tokens), encoded, psi, mask)
        expected = reference.pairs(text, frames, psi.double(), mask, padding=padding).similarity
    assert relative_error(score, expected) < 1e-5
    assert encoder.logit_scale.item() == pytest.approx(math.exp(4.0))


@pytest.mark.parametrize("temporal", [True, False])
def test_clip4clip_by_the_formulas(temporal, weights, model_file, save, batch) -> None:
    tokens, video, mask = batch
    left_out = CLIP4CLIP if temporal else (*CLIP4CLIP, "transformerClip.", "frame_position")
    weights = without(weights, *left_out)
    encoder, psi = load_official(save(weights), str(model_file), **SIZES)
    assert psi is None
    exact = {name: value.double() for name, value in weights.items()}
    frames = F.normalize(plain_frames(video.double(), mask, exact), dim=-1)
    pooled = (frames * mask.unsqueeze(-1)).sum(dim=1) / mask.sum(dim=1, keepdim=True)
    expected = F.normalize(plain_text(tokens, exact), dim=-1) @ F.normalize(pooled, dim=-1).T
    with torch.no_grad():
        text, video_features = encoder.encode_text(tokens), encoder.encode_video(video, mask)
        score = garevla.mean_frame_similarity(text, video_features, mask)
    assert relative_error(score, expected) < 1e-5


def test_the_published_code_itself(save, tmp_path: Path) -> None:
    """Its features, and its scores of padded videos, in float64."""
    golden = Golden(GOLDEN / "official_gare_small.npz")
    meta = golden.meta
    config = {
        "embed_dim": meta["D"],
        "quick_gelu": True,
        "vision_cfg": {
            "image_size": meta["image_size"],
            "layers": meta["vision_layers"],
            "width": meta["width"],
            "head_width": 64,
            "patch_size": meta["patch_size"],
        },
        "text_cfg": {
            "context_length": meta["context_length"],
            "vocab_size": meta["vocab_size"],
            "width": meta["width"],
            "heads": meta["width"] // 64,
            "layers": meta["text_layers"],
        },
    }
    (tmp_path / "golden.json").write_text(json.dumps(config))
    encoder, psi = load_official(
        save(golden.checkpoint()),
        str(tmp_path / "golden.json"),
        max_frames=meta["F"],
        context_length=meta["context_length"],
        padding="published",
    )
    encoder, psi, mask = encoder.double(), psi.double(), golden["mask"].bool()
    with torch.no_grad():
        text = encoder.encode_text(golden["tokens"].long())
        frames = encoder.encode_video(golden["video"], mask)
        similarity = garevla.gare_similarity(text, frames, psi, mask)
    assert relative_error(text, golden["text"]) < 1e-12
    assert relative_error(frames, golden["frames"]) < 1e-12
    assert relative_error(similarity, golden["similarity"]) < 1e-12


WRAPPERS: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "module.": lambda w: {f"module.{name}": x for name, x in w.items()},
    "_orig_mod.module.": lambda w: {f"_orig_mod.module.{name}": x for name, x in w.items()},
    "a compiled part": lambda w: {n.replace("clip.", "clip._orig_mod.", 1): w[n] for n in w},
    "state_dict": lambda w: {"epoch": 3, "state_dict": {f"model.{n}": x for n, x in w.items()}},
    "model_state_dict": lambda w: {"model_state_dict": w, "loss": 0.5},
    "model": lambda w: {"model": {f"module.{n}": x for n, x in w.items()}, "args": {"lr": 1e-4}},
    "half precision": lambda w: {name: x.half() for name, x in w.items()},
}


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_wrappers_and_prefixes(wrap, weights, model_file, save, caplog) -> None:
    wrapped = wrap(weights)
    with caplog.at_level(logging.INFO, logger="garevla"):
        encoder, psi = load_official(save(wrapped), str(model_file), **SIZES)
    clip = encoder.clip.state_dict()
    for name, value in clip.items():
        torch.testing.assert_close(value, weights[f"clip.{name}"], rtol=1e-3, atol=1e-4)
    positions = weights["frame_position_embeddings.weight"][:FRAMES]
    torch.testing.assert_close(encoder.temporal.position_embedding, positions, rtol=1e-3, atol=0)
    alone = garevla.CrossAttentionPsi(WIDTH)
    alone.load_official_state_dict(wrapped)
    for name, value in alone.state_dict().items():
        assert torch.equal(psi.state_dict()[name], value)
    assert f"3 temporal layers, psi; weights found: clip ({len(clip)}), " in caplog.text


def test_the_architecture_is_told_from_the_shapes(save) -> None:
    shapes = {
        "clip.visual.conv1.weight": (768, 3, 16, 16),
        "clip.visual.positional_embedding": (197, 768),
        "clip.text_projection": (512, 512),
    }
    path = save({name: torch.zeros(shape) for name, shape in shapes.items()})
    with pytest.raises(PretrainedWeightsError, match="its CLIP is not 'ViT-B-16-quickgelu': 29"):
        load_official(path)
    path = save({name: torch.zeros(shape[::-1]) for name, shape in shapes.items()})
    with pytest.raises(
        PretrainedWeightsError, match=r"none of ViT-B-32.*conv1.weight \(16, 16, 3, 768\).*give mod"
    ):
        load_official(path)


WRONG: dict[str, tuple[Callable[[dict[str, Tensor]], Any], str]] = {
    "no clip": (lambda w: without(w, "clip."), r"no weights named clip\.\*; weights found: frame"),
    "clip alone": (
        lambda w: {n.removeprefix("clip."): x for n, x in w.items() if n.startswith("clip.")},
        r"a CLIP alone: ClipEncoder\(pretrained=FILE\)",
    ),
    "another model": (
        lambda w: w | {"video_transformer.proj.weight": torch.ones(2)},
        r"1 weights are of neither model, such as video_transformer\.proj\.weight; .*video_transf",
    ),
    "LSTM": (lambda w: w | {"lstm_visual.bias_hh_l0": torch.ones(2)}, "seqLSTM.*not supported"),
    "tight": (lambda w: w | {"cross.pooler.ln_pool.bias": torch.ones(2)}, "tightTransf"),
    "DiscoVLA": (
        lambda w: w | {"clip.transformer.resblocks.0.attn.TVPt_LoRA_a": torch.ones(2)},
        "DiscoVLAEncoder.load_official_state_dict",
    ),
    "a missing weight of clip": (
        lambda w: without(w, "clip.ln_final.bias"),
        r"its CLIP is not '.*small\.json': 1 of \d+ weights are absent, such as ln_final\.bias",
    ),
    "a missing temporal weight": (
        lambda w: without(w, "transformerClip.resblocks.1.ln_1.bias"),
        r"transformerClip\.\*: 1 of \d+ weights are absent, such as resblocks\.1\.ln_1\.bias",
    ),
    "no positions": (
        lambda w: without(w, "frame_position"),
        r"has transformerClip\.\* and lacks frame_position_embeddings\.weight",
    ),
    "few positions": (
        lambda w: w | {"frame_position_embeddings.weight": torch.ones(5, WIDTH)},
        r"shape \(5, 128\), and max_frames 6 needs at least \(6, 128\)",
    ),
    "a missing weight of psi": (
        lambda w: without(w, "psi.mean_proj.bias", "agent.psi.mean_proj.bias"),
        r"lacks psi parameters: mean_proj\.bias; weights found: psi",
    ),
    "psi of another width": (
        lambda w: w | {p + "psi.mean_proj.bias": torch.ones(4) for p in ("", "agent.")},
        r"psi\.mean_proj\.bias has shape \(4,\)",
    ),
    "one name twice": (
        lambda w: w | {"module.clip.ln_final.bias": torch.ones(2)},
        r"several weights are clip\.ln_final\.bias, one of them module\.clip",
    ),
    "no weights": (lambda w: {"epoch": 3, "lr": 0.1}, "no weights by name: keys epoch, lr"),
    "a list": (lambda w: [torch.ones(2)], "no weights by name: list"),
    "code": (lambda w: {"state_dict": w, "args": argparse.Namespace()}, "might run code.*alone"),
    "one of ours": (lambda w: {"format": "garevla", "model": w}, "garevla's own training"),
}


@pytest.mark.parametrize(("change", "message"), WRONG.values(), ids=WRONG)
def test_files_that_do_not_fit(change, message, weights, model_file, save) -> None:
    path = save(change(weights))
    with pytest.raises(PretrainedWeightsError, match=rf"official\.pth .*{message}"):
        load_official(path, str(model_file), **SIZES)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"official checkpoint not found: .*nowhere"):
        load_official(tmp_path / "nowhere.pth")
    path = tmp_path / "damaged.pth"
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(PretrainedWeightsError, match=r"damaged\.pth"):
        load_official(path)


def test_heads_of_psi_are_the_callers(weights, model_file, save) -> None:
    _, psi = load_official(save(weights), str(model_file), psi_heads=4, **SIZES)
    assert psi.num_heads == 4
    other = random_psi(WIDTH, 4)
    other.load_official_state_dict(weights)
    assert torch.equal(other.mean_proj.weight, psi.mean_proj.weight)
