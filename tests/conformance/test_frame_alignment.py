"""The frame-level similarity of every backend that has kernels of its own for it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

import garevla
from garevla.discovla.similarity import frame_level_similarity
from tests.conformance.operations import random_mask
from tests.conformance.targets import Target, on_operations
from tests.helpers import relative_error

ON_TARGETS = on_operations(labels=["frame_alignment"])
SIZE = (5, 3, 6, 3, 24)  # texts, videos, captions, frames, dim

eager = partial(frame_level_similarity, backend="eager")


def inputs_of(
    target: Target, dtype: torch.dtype, scale: float = 7.0
) -> tuple[list[Tensor], list[Tensor]]:
    """Captions, frames and scale, representable in float32; masks."""
    torch.manual_seed(2)
    texts, videos, captions, frames, dim = SIZE
    inputs = torch.randn(texts, captions, dim), torch.randn(videos, frames, dim)
    masks = random_mask(texts, captions), random_mask(videos, frames)
    return (
        [
            x.to(target.device, dtype).requires_grad_()
            for x in (*inputs, torch.tensor(scale, dtype=dtype))
        ],
        [mask.to(target.device) for mask in masks],
    )


def outcome(
    function: Callable[..., Tensor], inputs: list[Tensor], masks: list[Tensor]
) -> list[Tensor]:
    """Similarity, and the gradients of a weighted sum of it."""
    similarity = function(*inputs, *masks)
    weights = torch.randn(similarity.shape, generator=torch.Generator().manual_seed(1))
    gradients = torch.autograd.grad(similarity, inputs, weights.to(similarity))
    return [x.cpu() for x in (similarity.detach(), *gradients)]


@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
@ON_TARGETS
def test_scales(target: Target, operation: str, scale: float):
    exact = outcome(eager, *inputs_of(target, torch.float64, scale))
    plain = outcome(eager, *inputs_of(target, torch.float32, scale))
    run = partial(frame_level_similarity, backend=target.backend)
    found = outcome(run, *inputs_of(target, torch.float32, scale))
    for got, same_dtype, want in zip(found, plain, exact, strict=True):
        # The scale's gradient is one number, whose error may be small by chance.
        floor = 1e-6 if want.dim() == 0 else 3e-7
        assert relative_error(got, want) <= 3 * relative_error(same_dtype, want) + floor


@ON_TARGETS
def test_scale_as_a_number(target: Target, operation: str):
    (captions, frames, _), _ = inputs_of(target, torch.float32)
    found = frame_level_similarity(captions, frames, 7.0, backend=target.backend)
    assert relative_error(found, eager(captions, frames, 7.0)) < 1e-6


@ON_TARGETS
def test_ties_are_broken_as_in_eager(target: Target, operation: str):
    # Unit vectors along a few axes: every cosine is 0 or 1 exactly, and many are equal.
    features = torch.eye(16)[torch.randint(3, (5, 12))], torch.eye(16)[torch.randint(3, (4, 6))]
    masks = [random_mask(5, 12).to(target.device), random_mask(4, 6).to(target.device)]
    run = partial(frame_level_similarity, backend=target.backend)
    exact, found = (
        outcome(
            function,
            [x.to(target.device, dtype).requires_grad_() for x in (*features, torch.tensor(3.0))],
            masks,
        )
        for function, dtype in ((eager, torch.float64), (run, torch.float32))
    )
    assert all(relative_error(got, want) < 1e-6 for got, want in zip(found, exact, strict=True))


@ON_TARGETS
def test_half_precision_features(target: Target, operation: str):
    (captions, frames, scale), _ = inputs_of(target, torch.float32)
    half = captions.bfloat16(), frames.bfloat16()
    found = frame_level_similarity(*half, scale, backend=target.backend)
    assert found.dtype == torch.float32
    assert relative_error(found, eager(*half, scale)) < 1e-6


@ON_TARGETS
def test_wrong_features(target: Target, operation: str):
    (captions, frames, scale), masks = inputs_of(target, torch.float32)
    run = partial(frame_level_similarity, backend=target.backend)
    with pytest.raises(ValueError, match="frame_features must have shape"):
        run(captions, frames[..., :-1], scale)
    if target.device != "cpu":
        # There the device finds it, which ends the process's context.
        return
    with pytest.raises(ValueError, match="no valid frame"):
        run(captions, frames, scale, masks[0] & False)


@ON_TARGETS
def test_the_loss(target: Target, operation: str):
    batch, frames, dim = 5, 6, 24
    shapes = (batch, dim), (batch, frames, dim), (batch, frames, dim)
    text, video, captions = (
        torch.randn(shape, device=target.device, requires_grad=True) for shape in shapes
    )
    scale = torch.tensor(9.0, device=target.device, requires_grad=True)
    mask = random_mask(batch, frames).to(target.device)
    loss = garevla.DiscoVLALoss()

    def found_with(backend: str) -> list[Tensor]:
        with garevla.use_backend(backend):
            out = loss(text, video, scale, mask, captions)
        gradients = torch.autograd.grad(out.loss, [text, video, captions, scale])
        return [out.loss, out.frame, out.distillation, *gradients]

    with pytest.MonkeyPatch.context() as patch:
        patch.delattr("garevla.ops.eager.frame_alignment._BestMatches")  # what eager runs
        found = found_with(target.backend)
    for got, want in zip(found, found_with("eager"), strict=True):
        assert relative_error(got, want) < 2e-6
