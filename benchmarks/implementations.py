"""Who is measured: the published formulas in four forms, and the backends of garevla."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from benchmarks.cases import DIRECTION_SAMPLES, Case, Inputs
from benchmarks.chunked import chunked_loss, chunked_similarity, vectorised_direction
from benchmarks.published import (
    published_direction,
    published_loss,
    published_pairs,
    unbound_direction,
)
from garevla import CrossAttentionPsi, GareLoss, backend_status, gare_similarity

PUBLISHED = "published"
UNBOUND = "published, unbound"
COMPILED = "published, compiled"
CHUNKED = "published, chunked"
FORMS = (PUBLISHED, UNBOUND, COMPILED, CHUNKED)
BACKENDS = ("eager", "native", "triton")
NAMES = (*FORMS, *BACKENDS)

Run = Callable[[Inputs], Tensor]


def unavailable(name: str, case: Case, device: torch.device) -> str | None:
    """Why an implementation has no part in a case, or None where it has."""
    if name in BACKENDS:
        return backend_status(device).get(name, "garevla has no such backend")
    if case.direction == "sampled":
        return "the published formulas do not sample the directional diversity"
    if name == UNBOUND and case.direction != "exact":
        return "the same as published without direction"
    return None


def build(name: str, case: Case, psi: CrossAttentionPsi) -> Run:
    """The similarity (A, B) or the loss, 0-d, of a case's inputs."""
    if name in BACKENDS:
        return _ours(name, case, psi)
    run = _published(name, case, psi)
    return torch.compile(run, dynamic=False) if name == COMPILED else run


def evaluate(run: Run, inputs: Inputs, case: Case, psi: CrossAttentionPsi) -> list[Tensor]:
    """The result and, where the case has a backward pass, all its gradients."""
    if not case.backward:
        with torch.no_grad():
            return [run(inputs)]
    value = run(inputs)
    leaves = [inputs.text, inputs.video, *psi.parameters()]
    upstream = inputs.upstream.to(value.dtype)
    gradients = torch.autograd.grad(value, leaves, upstream, allow_unused=True)
    return [value, *(gradient for gradient in gradients if gradient is not None)]


def _ours(backend: str, case: Case, psi: CrossAttentionPsi) -> Run:
    if case.workload == "similarity":
        return lambda x: gare_similarity(x.text, x.video, psi, x.mask, backend=backend)
    loss = GareLoss(
        psi,
        backend=backend,
        lambda_direction=0.0 if case.direction == "off" else 0.01,
        direction_samples=DIRECTION_SAMPLES if case.direction == "sampled" else None,
    )
    return lambda x: loss(x.text, x.video, x.scale, x.mask).loss


def _published(name: str, case: Case, psi: CrossAttentionPsi) -> Run:
    weight = 0.01 if case.direction == "exact" else 0.0
    loss: Callable[..., Tensor]
    if name == CHUNKED:
        loss, similarity = chunked_loss, chunked_similarity
    else:
        directions = {PUBLISHED: published_direction, UNBOUND: unbound_direction}
        direction = directions.get(name, vectorised_direction)
        loss, similarity = partial(published_loss, direction=direction), _published_similarity

    half = case.torch_dtype != case.compute_dtype

    def run(x: Inputs) -> Tensor:
        with torch.autocast(x.text.device.type, case.torch_dtype, enabled=half):
            if case.workload == "similarity":
                return similarity(x.text, x.video, psi, x.mask)
            return loss(x.text, x.video, psi, x.scale, x.mask, lambda_direction=weight)

    return run


def _published_similarity(
    text: Tensor, video: Tensor, psi: CrossAttentionPsi, mask: Tensor
) -> Tensor:
    return published_pairs(text, video, psi, mask).similarity
