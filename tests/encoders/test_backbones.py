"""Every family of open_clip's models, as small random ones, against open_clip itself."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from timm.layers import DropPath
from torch import Tensor

from garevla import CrossAttentionPsi, GareLoss
from garevla.encoders import ClipEncoder, DiscoVLAEncoder
from garevla.encoders.catalog import model_entry
from garevla.encoders.tokenizers import load_tokenizer
from garevla.training.model import RetrievalModel
from garevla.training.optim import parameter_groups
from tests.encoders.small_models import FAMILIES, TEXTS, small_timm, write_small
from tests.helpers import relative_error

FRAMES = 3


@dataclass
class Family:
    name: str
    path: str
    encoder: ClipEncoder


@pytest.fixture(scope="module", params=FAMILIES)
def family(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Family]:
    with small_timm():
        path = write_small(request.param, tmp_path_factory.mktemp("models"))
        torch.manual_seed(0)
        encoder = ClipEncoder(path, None, temporal_layers=0, max_frames=FRAMES, context_length=20)
        yield Family(request.param, path, encoder.eval())


def assert_same_weights(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    # open_clip leaves weights of CoCa's decoder uninitialized: NaN at times.
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


def images_of(encoder: ClipEncoder, *shape: int) -> Tensor:
    return torch.randn(*shape, 3, encoder.image_size, encoder.image_size)


def loss_of(model: RetrievalModel, video: Tensor) -> Tensor:
    tokens = model.encoder.tokenizer.trimmed(TEXTS)
    return model(tokens, video, torch.ones(len(TEXTS), FRAMES, dtype=torch.bool)).loss


@torch.no_grad()
def test_features_are_open_clips(family: Family) -> None:
    encoder, clip = family.encoder, family.encoder.clip
    images = images_of(encoder, 5)
    expected = clip.encode_image(images, normalize=False)
    assert relative_error(encoder.encode_images(images), expected) < 1e-6
    assert expected.shape == (5, encoder.dim)
    # As open_clip tokenizes for the model: all positions that it was made for.
    tokenize = load_tokenizer(encoder.tokenizer.source)
    tokens = tokenize(TEXTS, context_length=encoder.max_context_length)
    expected = clip.encode_text(tokens, normalize=False)
    assert expected.shape == (len(TEXTS), encoder.dim)
    assert relative_error(encoder.encode_text(tokens), expected) < 1e-6
    # No text is longer than what the encoder takes.
    assert relative_error(encoder.encode_text(encoder.tokenize(TEXTS)), expected) < 1e-6


@torch.no_grad()
def test_texts_do_not_depend_on_others_of_the_batch(family: Family) -> None:
    encoder = family.encoder
    together = encoder.encode_text(encoder.tokenizer.trimmed(TEXTS))
    for index, text in enumerate(TEXTS):
        alone = encoder.encode_text(encoder.tokenizer.trimmed([text]))[0]
        assert relative_error(alone, together[index]) < 2e-6
    lengths = {encoder.tokenizer.trimmed([text]).shape[1] for text in TEXTS}
    if encoder.text_tower.padding_counts:
        assert lengths == {encoder.max_context_length}
        with pytest.raises(ValueError, match=r"padding included, which counts"):
            encoder.encode_text(encoder.tokenize(TEXTS)[:, :-1])
    else:
        assert len(lengths) > 2
        assert max(lengths) < 20


@torch.no_grad()
def test_videos_do_not_depend_on_others_of_the_batch(family: Family) -> None:
    encoder = family.encoder.train()
    for module in encoder.modules():
        if isinstance(module, DropPath):
            module.eval()
    video = images_of(encoder, 2, FRAMES)
    mask = torch.ones(2, FRAMES, dtype=torch.bool)
    mask[1, 1:] = False
    video[1, 1:] = float("nan")
    together = encoder.encode_video(video, mask)
    family.encoder.eval()
    alone = encoder.encode_video(video[1:, :1], mask[1:, :1])
    assert relative_error(together[1, 0], alone[0, 0]) < 2e-6
    assert not together[1, 1:].any()


def test_training_reaches_both_towers(family: Family, tmp_path: Path) -> None:
    torch.manual_seed(1)
    encoder = ClipEncoder(
        family.path, None, temporal_layers=0, max_frames=FRAMES, context_length=20
    )
    psi = CrossAttentionPsi(encoder.dim, init="small", dropout=0.0)
    model = RetrievalModel(encoder, GareLoss(psi))
    video = images_of(encoder, len(TEXTS), FRAMES)
    trainable = {n: p for n, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.SGD(trainable.values(), 1e-3)
    with torch.no_grad():
        before = loss_of(model.eval(), video)
    model.train()
    for _ in range(2):
        optimizer.zero_grad()
        loss_of(model, video).backward()
        # None is left out, as DistributedDataParallel demands.
        assert [name for name, each in trainable.items() if each.grad is None] == []
        torch.nn.utils.clip_grad_norm_(trainable.values(), 1.0)
        optimizer.step()
    towers = {True: 0.0, False: 0.0}
    for name, each in encoder.clip.named_parameters():
        if each.requires_grad and name != "logit_scale":
            towers[name.startswith("visual.")] += each.grad.norm().item()
    assert min(towers.values()) > 1e-3
    with torch.no_grad():
        assert loss_of(model.eval(), video) < before
    path = tmp_path / "clip.pt"
    torch.save(encoder.clip.state_dict(), path)
    loaded = ClipEncoder(family.path, str(path), temporal_layers=0, context_length=20)
    state = encoder.clip.state_dict()
    assert state.keys() == loaded.clip.state_dict().keys()
    assert_same_weights(loaded.clip.state_dict(), state)


@torch.no_grad()
def test_words_or_why_there_are_none(family: Family) -> None:
    encoder = family.encoder
    tokens = encoder.tokenizer.trimmed(TEXTS)
    psi = CrossAttentionPsi(encoder.dim)
    if encoder.text_tower.no_words is not None:
        with pytest.raises(ValueError, match="no features of words"):
            encoder.encode_words(tokens)
        with pytest.raises(ValueError, match="videos cannot be corrected"):
            RetrievalModel(encoder, GareLoss(psi, corrects="video"))
        return
    texts = encoder.texts_of(tokens, encoder.encode_words(tokens))
    assert relative_error(texts.text_features, encoder.encode_text(tokens)) < 1e-6
    # Words, and what the tokenizer puts before and behind them.
    assert texts.word_mask is not None
    more = texts.word_mask.sum(dim=1) - torch.tensor([len(text.split()) for text in TEXTS])
    assert len(set(more.tolist())) == 1
    assert 1 <= more[0] <= 2
    model = RetrievalModel(encoder, GareLoss(psi, corrects="video")).eval()
    assert loss_of(model, images_of(encoder, len(TEXTS), FRAMES)).isfinite()


def test_discovla_adapts_or_says_why(family: Family) -> None:
    reasons = model_entry(family.name).fit.adaptation_obstacles
    if reasons:
        with pytest.raises(ValueError, match=re.escape(", ".join(reasons))) as error:
            DiscoVLAEncoder(family.path, None)
        assert "mode gare takes this one" in str(error.value)
        return
    torch.manual_seed(0)
    adapted = DiscoVLAEncoder(
        family.path, None, max_frames=FRAMES, vision_fusion_blocks=0, context_length=20
    ).eval()
    clip = adapted.clip
    # Without training, and without fusion, it is the model itself.
    video = images_of(adapted, 2, FRAMES)
    expected = clip.encode_image(video.flatten(0, 1)).unflatten(0, (2, FRAMES))
    mask = torch.ones(2, FRAMES, dtype=torch.bool)
    assert relative_error(adapted.encode_video(video, mask), expected) < 2e-6
    tokens = load_tokenizer(adapted.tokenizer.source)(
        TEXTS, context_length=adapted.max_context_length
    )
    assert relative_error(adapted.encode_text(tokens), clip.encode_text(tokens)) < 2e-6
    assert (
        adapted.encode_pseudo_captions(adapted.tokenizer.trimmed(TEXTS[:3]).expand(2, -1, -1), mask)
        .isfinite()
        .all()
    )


def test_a_frozen_backbone_takes_no_part_in_training(family: Family) -> None:
    encoder = ClipEncoder(
        family.path, None, temporal_layers=0, max_frames=FRAMES, context_length=20, frozen=True
    )
    model = RetrievalModel(encoder, GareLoss(CrossAttentionPsi(encoder.dim))).train()
    assert model.training
    assert not any(module.training for module in encoder.clip.modules())
    before = {name: value.clone() for name, value in encoder.clip.state_dict().items()}
    video = images_of(encoder, 2, FRAMES)
    mask = torch.ones(2, FRAMES, dtype=torch.bool)
    # No graph leads through it.
    assert not encoder.encode_video(video, mask).requires_grad
    assert not encoder.encode_text(encoder.tokenizer.trimmed(TEXTS)).requires_grad
    loss_of(model, images_of(encoder, len(TEXTS), FRAMES)).backward()
    assert all(each.grad is None for each in encoder.clip.parameters())
    assert_same_weights(encoder.clip.state_dict(), before)
    groups = parameter_groups(
        model, encoder.clip, learning_rate=1.0, clip_lr_scale=1.0, weight_decay=0.1
    )
    assert {group["name"] for group in groups} == {"new", "new_no_decay"}


def test_vectors_and_norms_do_not_decay(family: Family) -> None:
    groups = parameter_groups(
        family.encoder, family.encoder.clip, learning_rate=1.0, clip_lr_scale=1.0, weight_decay=0.1
    )
    decays = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    for module in family.encoder.clip.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if "norm" in type(module).__name__.lower() or name.endswith("bias"):
                assert id(parameter) not in decays
    assert decays


def test_the_temporal_transformer_starts_from_text_blocks_where_they_fit(
    family: Family, tmp_path: Path
) -> None:
    path = tmp_path / "clip.pt"
    torch.save(family.encoder.clip.state_dict(), path)
    encoder = ClipEncoder(family.path, str(path), temporal_layers=1, context_length=20)
    assert encoder.temporal is not None
    start = encoder.temporal.transformer.resblocks[0].mlp.c_fc.weight
    text = getattr(encoder.clip, "text", encoder.clip).transformer
    copied = (
        hasattr(text, "resblocks") and torch.equal(start, text.resblocks[0].mlp.c_fc.weight)
        if start.shape == (4 * 48, 48)
        else False
    )
    assert copied == (encoder.dim == 48 and hasattr(text, "resblocks"))
