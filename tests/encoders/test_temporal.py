from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from garevla.encoders import ClipEncoder, TemporalTransformer


def published_forward(
    temporal: TemporalTransformer, frames: Tensor, mask: Tensor, heads: int
) -> Tensor:
    """CLIP4Clip's sequential transformer, written out: additive mask of -1e6 over the keys."""
    x = frames + temporal.position_embedding[: frames.shape[1]]
    for block in temporal.transformer.resblocks:
        normed = block.ln_1(x)
        weight, bias = block.attn.in_proj_weight, block.attn.in_proj_bias
        q, k, v = (
            part.unflatten(-1, (heads, -1)).transpose(1, 2)
            for part in nn.functional.linear(normed, weight, bias).chunk(3, dim=-1)
        )
        logits = q @ k.mT / math.sqrt(q.shape[-1]) + (1.0 - mask.float())[:, None, None] * -1e6
        attended = (logits.softmax(dim=-1) @ v).transpose(1, 2).flatten(2)
        x = x + block.attn.out_proj(attended)
        hidden = block.mlp.c_fc(block.ln_2(x))
        x = x + block.mlp.c_proj(hidden * torch.sigmoid(1.702 * hidden))
    return frames + x


@pytest.mark.parametrize(("dim", "heads"), [(48, 1), (128, 2), (200, 2)])
@pytest.mark.parametrize("training", [True, False])
def test_published_formula(dim: int, heads: int, training: bool) -> None:
    temporal = TemporalTransformer(dim, layers=2, max_frames=7).train(training)
    for parameter in temporal.parameters():
        nn.init.normal_(parameter, std=0.2)
    frames = torch.randn(4, 6, dim)
    mask = torch.arange(6) < torch.tensor([[6], [1], [4], [5]])
    with torch.set_grad_enabled(training):
        result = temporal(frames, mask)
    expected = published_forward(temporal, frames, mask, heads)
    assert temporal.num_heads == heads
    torch.testing.assert_close(result[mask], expected[mask], rtol=1e-4, atol=1e-4)
    assert not result[~mask].any()


@pytest.mark.parametrize("poison", [float("nan"), float("-inf"), 1e6])
def test_padding_takes_no_part(poison: float) -> None:
    temporal = TemporalTransformer(16, layers=2, max_frames=6)
    frames = torch.randn(3, 6, 16)
    mask = torch.arange(6) < torch.tensor([[2], [6], [1]])
    poisoned = frames.masked_fill(~mask.unsqueeze(-1), poison)
    assert torch.equal(temporal(frames, mask), temporal(poisoned, mask))
    alone = temporal(frames[:1, :2], mask[:1, :2])
    torch.testing.assert_close(temporal(poisoned, mask)[:1, :2], alone)
    poisoned.requires_grad_()
    temporal(poisoned, mask).square().sum().backward()
    assert not poisoned.grad[~mask].any()
    assert all(parameter.grad.isfinite().all() for parameter in temporal.parameters())


def test_order_of_frames_matters() -> None:
    temporal = TemporalTransformer(16, layers=1, max_frames=4)
    nn.init.normal_(temporal.position_embedding)
    frames, mask = torch.randn(1, 4, 16), torch.ones(1, 4, dtype=torch.bool)
    forth, back = temporal(frames, mask), temporal(frames.flip(1), mask).flip(1)
    assert (forth - back).norm() > 0.01 * forth.norm()


def test_starts_from_pretrained_clips_text_tower(tmp_path: Path) -> None:
    weights = tmp_path / "clip.pt"
    torch.save(ClipEncoder("tiny", None, temporal_layers=0).clip.state_dict(), weights)
    encoder = ClipEncoder("tiny", str(weights), temporal_layers=4, max_frames=40)
    clip, temporal = encoder.clip, encoder.temporal
    # The tiny text tower has 3 blocks and 32 positions: the rest keeps its random start.
    for own, text in zip(temporal.transformer.resblocks, clip.transformer.resblocks, strict=False):
        for name, value in text.state_dict().items():
            assert torch.equal(own.state_dict()[name], value)
    assert torch.equal(temporal.position_embedding[:32], clip.positional_embedding)
    assert temporal.position_embedding[32:].std() > 0.4
    own = temporal.transformer.resblocks[0].mlp.c_fc.weight
    assert own.data_ptr() != clip.transformer.resblocks[0].mlp.c_fc.weight.data_ptr()


def test_random_clip_leaves_the_random_start() -> None:
    encoder = ClipEncoder("tiny", None, temporal_layers=1)
    assert 0.4 < encoder.temporal.position_embedding.std() < 0.6
    own = encoder.temporal.transformer.resblocks[0].mlp.c_fc.weight
    assert own.std().item() == pytest.approx(encoder.dim**-0.5, rel=0.05)


def test_too_many_frames() -> None:
    temporal = TemporalTransformer(16, layers=1, max_frames=4)
    with pytest.raises(ValueError, match="5 frames, the temporal transformer 4 positions"):
        temporal(torch.randn(1, 5, 16), torch.ones(1, 5, dtype=torch.bool))


def test_text_blocks_that_do_not_fit() -> None:
    temporal = TemporalTransformer(16, layers=1, max_frames=4)
    other = TemporalTransformer(32, layers=1, max_frames=4)
    with pytest.raises(ValueError, match=r"\(L, 16\)"):
        temporal.copy_from_text(other.transformer.resblocks, other.position_embedding)
    with pytest.raises(ValueError, match="do not fit"):
        temporal.copy_from_text(other.transformer.resblocks, temporal.position_embedding)
