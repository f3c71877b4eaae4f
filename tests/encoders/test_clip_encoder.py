from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch

from garevla.encoders import ClipEncoder, PretrainedWeightsError

CAPTIONS = ["a red square moves left", "two dogs", "", "a man cooks " + "and sings " * 40]

CONFIG = {
    "embed_dim": 64,
    "quick_gelu": True,
    "vision_cfg": {
        "image_size": 32,
        "layers": 2,
        "width": 48,
        "head_width": 24,
        "patch_size": 16,
    },
    "text_cfg": {
        "context_length": 77,
        "vocab_size": 49408,
        "width": 64,
        "heads": 2,
        "layers": 2,
    },
}


@pytest.fixture(scope="module")
def config_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "small.json"
    path.write_text(json.dumps(CONFIG))
    return path


@pytest.fixture
def encoder(config_file: Path) -> ClipEncoder:
    return ClipEncoder(str(config_file), None, temporal_layers=0, max_frames=5).eval()


def random_video(frames: int = 5, size: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    video = torch.randn(3, frames, 3, size, size)
    mask = torch.ones(3, frames, dtype=torch.bool)
    mask[0, 3:] = False
    mask[2, 1:] = False
    return video, mask


def test_text_features_are_open_clips(encoder: ClipEncoder) -> None:
    tokens = open_clip.tokenize(CAPTIONS)
    torch.testing.assert_close(encoder.encode_text(tokens), encoder.clip.encode_text(tokens))


def test_frame_features_are_open_clips(encoder: ClipEncoder) -> None:
    video, mask = random_video()
    features = encoder.encode_video(video, mask)
    expected = encoder.clip.encode_image(video.flatten(0, 1)).unflatten(0, mask.shape)
    torch.testing.assert_close(features[mask], expected[mask])
    assert not features[~mask].any()


@pytest.mark.parametrize("length", [12, 32, 76])
def test_fewer_positions_give_the_features_of_a_padded_text(
    encoder: ClipEncoder, length: int
) -> None:
    short = open_clip.tokenize(CAPTIONS, context_length=length)
    padded = torch.zeros(len(CAPTIONS), 77, dtype=torch.int64)
    padded[:, :length] = short
    torch.testing.assert_close(encoder.encode_text(short), encoder.clip.encode_text(padded))


def test_tokenize_cuts_long_texts_and_keeps_eot(encoder: ClipEncoder) -> None:
    tokens = encoder.tokenize(CAPTIONS)
    assert tokens.shape == (4, 32)
    assert tokens.dtype == torch.int64
    assert tokens[3, -1] == tokens.max() == 49407
    assert tokens[2].tolist() == [49406, 49407] + [0] * 30
    assert torch.equal(pickle.loads(pickle.dumps(encoder.tokenizer))(CAPTIONS), tokens)
    assert len(pickle.dumps(encoder.tokenizer)) < 1000


@pytest.mark.parametrize("temporal_layers", [0, 2])
@pytest.mark.parametrize("poison", [float("nan"), float("inf"), 1e4])
def test_padded_frames_take_no_part(config_file: Path, temporal_layers: int, poison: float) -> None:
    encoder = ClipEncoder(str(config_file), None, temporal_layers=temporal_layers, max_frames=5)
    video, mask = random_video()
    poisoned = video.clone()
    poisoned[~mask] = poison

    def features_and_gradients(video: torch.Tensor) -> list[torch.Tensor]:
        encoder.zero_grad()
        features = encoder.encode_video(video, mask)
        (features * torch.arange(5.0)[:, None]).square().sum().backward()
        gradients = [p.grad for p in encoder.parameters() if p.grad is not None]
        return [features.detach(), *[g.clone() for g in gradients]]

    for clean, other in zip(
        features_and_gradients(video), features_and_gradients(poisoned), strict=True
    ):
        assert torch.equal(clean, other)


def test_appended_padding_changes_nothing(config_file: Path) -> None:
    encoder = ClipEncoder(str(config_file), None, temporal_layers=2, max_frames=5).eval()
    video, _ = random_video(frames=2)
    mask = torch.ones(3, 2, dtype=torch.bool)
    longer = torch.cat([video, torch.full((3, 3, *video.shape[2:]), float("nan"))], dim=1)
    longer_mask = torch.cat([mask, torch.zeros(3, 3, dtype=torch.bool)], dim=1)
    torch.testing.assert_close(
        encoder.encode_video(longer, longer_mask)[:, :2], encoder.encode_video(video, mask)
    )


def test_gradients_are_those_of_frames_encoded_one_by_one(encoder: ClipEncoder) -> None:
    video, mask = random_video()
    weight = torch.randn(3, 5, encoder.dim)
    video.requires_grad_()
    (encoder.encode_video(video, mask) * weight).sum().backward()
    parameter = encoder.clip.visual.conv1.weight
    batched, batched_video = parameter.grad.clone(), video.grad.clone()
    parameter.grad = video.grad = None
    sum(
        (encoder.clip.encode_image(video[i, j][None])[0] * weight[i, j]).sum()
        for i, j in mask.nonzero().tolist()
    ).backward()
    torch.testing.assert_close(batched, parameter.grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(batched_video, video.grad, rtol=1e-4, atol=1e-5)


def test_bfloat16_autocast(encoder: ClipEncoder) -> None:
    video, mask = random_video()
    tokens = encoder.tokenize(CAPTIONS)
    exact = encoder.encode_video(video, mask), encoder.encode_text(tokens)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = encoder.encode_video(video, mask), encoder.encode_text(tokens)
    for a, b in zip(exact, rounded, strict=True):
        assert b.dtype == torch.bfloat16
        assert (a - b).norm() < 0.03 * a.norm()


def test_properties_come_from_the_model(tmp_path: Path) -> None:
    preprocess = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    path = tmp_path / "open_clip_config.json"
    path.write_text(json.dumps({"model_cfg": CONFIG, "preprocess_cfg": preprocess}))
    encoder = ClipEncoder(str(path), None, temporal_layers=0)
    assert (encoder.dim, encoder.image_size) == (64, 32)
    assert encoder.image_mean == (0.1, 0.2, 0.3)
    assert encoder.image_std == (0.4, 0.5, 0.6)
    assert encoder.temporal is None


def test_shipped_tiny_model() -> None:
    encoder = ClipEncoder("tiny", None)
    assert encoder.image_size == 64
    assert encoder.image_mean == open_clip.OPENAI_DATASET_MEAN
    assert len(encoder.temporal.transformer.resblocks) == 4
    assert encoder.encode_text(encoder.tokenize(["a cat"])).shape == (1, encoder.dim)


def test_logit_scale_is_clamped_and_can_come_back(encoder: ClipEncoder) -> None:
    parameter = encoder.clip.logit_scale
    torch.testing.assert_close(encoder.logit_scale, parameter.exp())
    with torch.no_grad():
        parameter.fill_(5.0)
    assert encoder.logit_scale == 100
    assert encoder.logit_scale.dim() == 0
    encoder.clamp_logit_scale_()
    assert 99.999 < encoder.logit_scale <= 100
    encoder.logit_scale.backward()
    assert parameter.grad > 99


def test_open_clip_checkpoint_by_path(encoder: ClipEncoder, config_file: Path) -> None:
    path = config_file.with_name("weights.pt")
    torch.save(encoder.clip.state_dict(), path)
    loaded = ClipEncoder(str(config_file), str(path), temporal_layers=0)
    for name, value in encoder.clip.state_dict().items():
        assert torch.equal(loaded.clip.state_dict()[name], value)


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_openai_torchscript_checkpoint_by_path(encoder: ClipEncoder, config_file: Path) -> None:
    module = torch.nn.Module()
    for name, value in encoder.clip.half().state_dict().items():
        *parents, leaf = name.split(".")
        parent = module
        for part in parents:
            if not hasattr(parent, part):
                parent.add_module(part, torch.nn.Module())
            parent = getattr(parent, part)
        parent.register_buffer(leaf, value)
    module.register_buffer("input_resolution", torch.tensor(32))
    path = config_file.with_name("openai.pt")
    torch.jit.save(torch.jit.script(module), path)
    loaded = ClipEncoder(str(config_file), str(path), temporal_layers=0)
    for name, value in encoder.clip.state_dict().items():
        assert torch.equal(loaded.clip.state_dict()[name], value.float())


@pytest.mark.parametrize("model_name", ["ViT-B-33", "hf-hub:someone/something"])
def test_unknown_models_are_refused(model_name: str) -> None:
    with pytest.raises(ValueError, match="unknown model") as error:
        ClipEncoder(model_name)
    assert model_name in str(error.value)


@pytest.mark.parametrize(
    ("tower", "changes", "reason"),
    [
        ("vision_cfg", {"pool_type": "none"}, "image features that are not pooled"),
        ("text_cfg", {"pool_type": "none"}, "text features that are not pooled"),
        ("vision_cfg", {"image_size": [32, 48]}, "images that are not square"),
        ("text_cfg", {"embed_cls": True}, "custom_text"),
        ("text_cfg", {"tokenizer_mode": "clips"}, "token behind the padding"),
    ],
)
def test_models_without_a_feature_are_refused(
    tower: str, changes: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    path = tmp_path / "other.json"
    path.write_text(json.dumps({**CONFIG, tower: {**CONFIG[tower], **changes}}))
    with pytest.raises(ValueError, match=reason) as error:
        ClipEncoder(str(path), None)
    assert "other.json" in str(error.value)


def test_failed_download_names_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise RuntimeError("no route to host")

    monkeypatch.setattr(open_clip, "create_model", unreachable)
    with pytest.raises(PretrainedWeightsError, match=r"local checkpoint.*no route to host"):
        ClipEncoder("ViT-B-32-quickgelu", "openai")


def test_weights_that_are_not_there(config_file: Path, tmp_path: Path) -> None:
    with pytest.raises(PretrainedWeightsError, match="no such file: openai"):
        ClipEncoder(str(config_file), "openai")
    with pytest.raises(PretrainedWeightsError, match="neither a file nor weights"):
        ClipEncoder("ViT-B-32-quickgelu", str(tmp_path / "missing.pt"))
    damaged = tmp_path / "damaged.pt"
    damaged.write_bytes(b"not a checkpoint")
    with pytest.raises(PretrainedWeightsError, match=r"damaged\.pt does not hold weights"):
        ClipEncoder(str(config_file), str(damaged))


def test_config_files_that_are_wrong(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.json"):
        ClipEncoder(str(tmp_path / "nowhere.json"), None)
    path = tmp_path / "bad.json"
    path.write_text("{")
    with pytest.raises(ValueError, match="not a JSON file"):
        ClipEncoder(str(path), None)
    path.write_text("{}")
    with pytest.raises(ValueError, match="not an open_clip model config"):
        ClipEncoder(str(path), None)
    path.write_text(json.dumps({**CONFIG, "color": "red"}))
    with pytest.raises(ValueError, match=r"does not fit open_clip.*color"):
        ClipEncoder(str(path), None)


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.float32])
def test_masks_of_any_dtype_are_alike(encoder: ClipEncoder, dtype: torch.dtype) -> None:
    video, mask = random_video()
    mask[1, 3:] = False
    expected = encoder.encode_video(video, mask)
    assert torch.equal(encoder.encode_video(video, mask.to(dtype)), expected)
    assert expected[1, 3:].eq(0).all()


def test_wrong_arguments_are_named(encoder: ClipEncoder, config_file: Path) -> None:
    video, mask = random_video()
    with pytest.raises(ValueError, match=r"video must be .*\(B, F, 3, 32, 32\).*\(3, 5, 3, 31, 3"):
        encoder.encode_video(video[..., :31, :], mask)
    with pytest.raises(ValueError, match="frame_mask must hold only 0"):
        encoder.encode_video(video, mask.float() / 2)
    with pytest.raises(ValueError, match=r"frame_mask must have .*\(3, 5\)"):
        encoder.encode_video(video, mask[:, :4])
    mask[1] = False
    with pytest.raises(ValueError, match=r"no valid frame, at batch positions \[1\]"):
        encoder.encode_video(video, mask)
    with pytest.raises(ValueError, match="6 frames, max_frames is 5"):
        encoder.encode_video(*random_video(frames=6))
    with pytest.raises(ValueError, match="tokens must be int64"):
        encoder.encode_text(torch.zeros(2, 8))
    with pytest.raises(ValueError, match="78 tokens per text"):
        encoder.encode_text(torch.zeros(2, 78, dtype=torch.int64))
    with pytest.raises(ValueError, match="context_length must be between 3 and 77"):
        ClipEncoder(str(config_file), None, context_length=78)


def test_trimmed_padding_changes_no_feature() -> None:
    encoder = ClipEncoder("tiny", None, temporal_layers=0, context_length=20).eval()
    tokens = encoder.tokenize(["a red circle!", "go", "a large blue square moves up"])
    trimmed = encoder.tokenizer.trimmed(["a red circle!", "go", "a large blue square moves up"])
    # Start, six words, EOT; "!" has id 0, as padding has.
    assert trimmed.shape == (3, 8)
    torch.testing.assert_close(encoder.encode_text(trimmed), encoder.encode_text(tokens))


def test_words_are_features_at_every_token(encoder: ClipEncoder) -> None:
    tokens = encoder.tokenizer.trimmed(CAPTIONS[:3])
    texts = encoder.texts_of(tokens, encoder.encode_words(tokens))
    torch.testing.assert_close(texts.text_features, encoder.encode_text(tokens))
    assert texts.word_mask is not None
    assert texts.word_mask.sum(dim=1).tolist() == [7, 4, 2]
    # Causal attention: the first tokens are those of the text that ends there.
    cut = tokens[:1, :4].clone()
    cut[0, 3] = tokens.max()
    assert torch.allclose(encoder.encode_words(cut)[0, :3], texts.word_features[0, :3], atol=1e-5)
