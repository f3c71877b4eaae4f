"""Encoding in chunks: the whole batch's gradients with a chunk's activations."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from garevla.training import RetrievalModel, TrainConfig, build_model, in_chunks
from tests.helpers import relative_error, saved_bytes

TEXTS = ["a red circle", "a blue square moves", "two things", "it turns", "a dot"]
FRAMES = 4


def model_and_batch(
    make_config: Callable[..., TrainConfig], mode: str, chunk: int, corrects: str = "text"
) -> tuple[RetrievalModel, list[Tensor]]:
    torch.manual_seed(0)
    model = {"mode": mode, "psi_dropout": 0.0, "corrects": corrects}
    if mode != "gare":
        model |= {"vision_fusion_blocks": 1, "text_fusion_blocks": 1}
    config = make_config(
        "run",
        model=model,
        run={"encoder_chunk": chunk},
    )
    built = build_model(config)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    mask = torch.arange(FRAMES) < torch.tensor([[4], [2], [3], [1], [4]])
    video = torch.randn(len(TEXTS), FRAMES, 3, 32, 32, dtype=torch.float64)
    batch = [built.tokenize(TEXTS), video, mask]
    if mode != "gare":
        captions = [f"{text} {frame}" for text in TEXTS for frame in range(FRAMES)]
        batch.append(built.tokenize(captions).unflatten(0, (len(TEXTS), FRAMES)))
    return built.double(), batch


@pytest.mark.parametrize(
    ("mode", "corrects"),
    [
        ("gare", "text"),
        ("gare", "video"),
        ("discovla", "text"),
        ("gare+discovla", "text"),
        ("gare+discovla", "video"),
    ],
)
@pytest.mark.parametrize("chunk", [1, 2, 5])
def test_chunks_are_the_whole_batch(
    make_config: Callable[..., TrainConfig], mode: str, corrects: str, chunk: int
):
    outcomes = []
    for size in (0, chunk):
        model, batch = model_and_batch(make_config, mode, size, corrects)
        loss = model(*batch).loss
        loss.backward()
        outcomes.append((loss, {n: p.grad for n, p in model.named_parameters()}))
    (whole, want), (loss, found) = outcomes
    assert relative_error(loss, whole) < 1e-12
    assert want.keys() == found.keys()
    for name, gradient in want.items():
        if gradient is None:
            assert found[name] is None
        elif gradient.norm() > 1e-12:
            assert relative_error(found[name], gradient) < 1e-9, name


def test_a_chunks_activations_are_let_go():
    deep = nn.Sequential(*[layer for _ in range(8) for layer in (nn.Linear(64, 64), nn.GELU())])
    x = torch.randn(512, 64)
    weights = sum(p.nbytes for p in deep.parameters())
    whole = saved_bytes(lambda: deep(x)) - weights
    chunked = saved_bytes(lambda: in_chunks(deep, 16, x))
    assert whole > 8 * x.nbytes
    assert chunked <= 2 * x.nbytes


def test_dropout_is_the_same_both_times():
    dropout, x = nn.Dropout(0.5), torch.ones(40, 8, requires_grad=True)
    out = in_chunks(dropout, 7, x)
    (grad,) = torch.autograd.grad(out.sum(), x)
    assert torch.equal(grad, out)
    assert 0 < (out == 0).sum() < out.numel()


def test_without_gradients_nothing_is_encoded_twice():
    calls = []

    def encode(x: Tensor) -> Tensor:
        calls.append(len(x))
        return 2 * x

    with torch.no_grad():
        assert torch.equal(in_chunks(encode, 3, torch.arange(7.0)), 2 * torch.arange(7.0))
    assert calls == [3, 3, 1]
    with pytest.raises(ValueError, match="size must be at least 0"):
        in_chunks(encode, -1, torch.arange(3.0))
