"""Who is measured: the published formulas in four forms, and the backends of garevla."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

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
from garevla import CrossAttentionPsi, GareLoss, backend_status, gare_similarity, use_precision

PUBLISHED = "published"
UNBOUND = "published, unbound"
COMPILED = "published, compiled"
CHUNKED = "published, chunked"
FORMS = (PUBLISHED, UNBOUND, COMPILED, CHUNKED)
BACKENDS = ("eager", "native", "triton")
# Backends whose products of float32 may be rounded to bfloat16, if that is asked for.
ROUNDED = {f"{backend}, bfloat16": backend for backend in ("native", "triton")}
NAMES = (*FORMS, *BACKENDS, *ROUNDED)


class Run(NamedTuple):
    """An implementation made for a case."""

    call: Callable[[Inputs], Tensor]
    precision: str = "float32"
    """Of products of float32; see :func:`garevla.use_precision`."""


def unavailable(name: str, case: Case, device: torch.device) -> str | None:
    """Why an implementation has no part in a case, or None where it has."""
    if name in ROUNDED and case.compute_dtype != torch.float32:
        return "only products of float32 are rounded"
    name = ROUNDED.get(name, name)
    if name in BACKENDS:
        return backend_status(device).get(name, "garevla has no such backend")
    if case.direction == "sampled":
        return "the published formulas do not sample the directional diversity"
    if name == UNBOUND and case.direction != "exact":
        return "the same as published without direction"
    return None


def build(name: str, case: Case, psi: CrossAttentionPsi) -> Run:
    """The similarity (A, B) or the loss, 0-d, of a case's inputs."""
    if name in ROUNDED:
        return Run(_ours(ROUNDED[name], case, psi), "bfloat16")
    return Run(_ours(name, case, psi) if name in BACKENDS else _published(name, case, psi))


def evaluate(run: Run, inputs: Inputs, case: Case, psi: CrossAttentionPsi) -> list[Tensor]:
    """The result and, where the case has a backward pass, all its gradients."""
    with use_precision(run.precision):
        if not case.backward:
            with torch.no_grad():
                return [run.call(inputs)]
        value = run.call(inputs)
        leaves = [inputs.text, inputs.video, *psi.parameters()]
        upstream = inputs.upstream.to(value.dtype)
        gradients = torch.autograd.grad(value, leaves, upstream, allow_unused=True)
        return [value, *(gradient for gradient in gradients if gradient is not None)]


def _ours(backend: str, case: Case, psi: CrossAttentionPsi) -> Callable[[Inputs], Tensor]:
    if case.workload == "similarity":
        return lambda x: gare_similarity(x.text, x.video, psi, x.mask, backend=backend)
    loss = GareLoss(
        psi,
        backend=backend,
        lambda_direction=0.0 if case.direction == "off" else 0.01,
        direction_samples=DIRECTION_SAMPLES if case.direction == "sampled" else None,
    )
    return lambda x: loss(x.text, x.video, x.scale, x.mask).loss


def _published(name: str, case: Case, psi: CrossAttentionPsi) -> Callable[[Inputs], Tensor]:
    weight = 0.01 if case.direction == "exact" else 0.0
    loss: Callable[..., Tensor]
    if name == CHUNKED:
        loss, similarity = chunked_loss, chunked_similarity
    else:
        directions = {PUBLISHED: published_direction, UNBOUND: unbound_direction}
        direction = directions.get(name, vectorised_direction)
        loss, similarity = partial(published_loss, direction=direction), _published_similarity

    half = case.torch_dtype != case.compute_dtype

    def of_tensors(text: Tensor, video: Tensor, scale: Tensor, mask: Tensor) -> Tensor:
        with torch.autocast(text.device.type, case.torch_dtype, enabled=half):
            if case.workload == "similarity":
                return similarity(text, video, psi, mask)
            return loss(text, video, psi, scale, mask, lambda_direction=weight)

    run = of_tensors
    if name == COMPILED:
        logging.getLogger("torch.utils.cpp_extension").addFilter(_is_news)
        run = torch.compile(of_tensors, dynamic=False)
    return lambda x: run(x.text, x.video, x.scale, x.mask)


def _is_news(record: logging.LogRecord) -> bool:
    """Filter of the compiler's log: that there is no GPU is none."""
    return not record.getMessage().startswith("No CUDA runtime is found")


def _published_similarity(
    text: Tensor, video: Tensor, psi: CrossAttentionPsi, mask: Tensor
) -> Tensor:
    return published_pairs(text, video, psi, mask).similarity
