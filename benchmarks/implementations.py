"""Who is measured: the published formulas in four forms, garevla's backends, and their peers."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.cases import (
    DIRECTION_SAMPLES,
    LOGIT_SCALE,
    Case,
    Inputs,
    Network,
    make_inputs,
    make_psi,
)
from benchmarks.chunked import chunked_loss, chunked_similarity, vectorized_direction
from benchmarks.peers import PEERS, Peer
from garevla import (
    BackendUnavailableError,
    GareLoss,
    backend_status,
    dropout_seed,
    gare_similarity,
    use_precision,
)
from garevla.ops.backends import backend_names
from garevla.reference import gare as reference

PUBLISHED = "published"
UNBOUND = "published, unbound"
COMPILED = "published, compiled"
CHUNKED = "published, chunked"
BACKENDS = backend_names()
# The definition of what the other backends compute: the oracle, in float64.
DEFINITION = "eager"
# What :func:`garevla.use_precision` computes in float32 everywhere.
_EXACT = {("native", "tf32x3")}
# Of the pairs' dropout masks, the same for everyone.
DROPOUT_SEED = 0

Call = Callable[[Inputs], Tensor]


class Implementation(NamedTuple):
    """One column of the tables."""

    make: Callable[[Case, Network], Call]
    """The similarity (A, B) or the loss, 0-d, as a function of a case's inputs."""
    unavailable: Callable[[Case, torch.device], str | None]
    """Why it has no part in a case, or None where it has."""
    precision: str = "float32"
    """Of products of float32; see :func:`garevla.use_precision`."""
    foreign: bool = False
    """Whether others answer for it: what breaks is said, and is no fault of this project."""
    version: str | None = None
    """Of the package that it is from."""


class Run(NamedTuple):
    """An implementation made for a case."""

    call: Call
    precision: str = "float32"


def build(name: str, case: Case, psi: Network) -> Run:
    """Make an implementation for a case."""
    return Run(IMPLEMENTATIONS[name].make(case, psi), IMPLEMENTATIONS[name].precision)


def evaluate(run: Run, inputs: Inputs, case: Case, psi: Network) -> list[Tensor]:
    """The result and, where the case has a backward pass, all its gradients."""
    with use_precision(run.precision), dropout_seed(DROPOUT_SEED):
        if not case.backward:
            with torch.no_grad():
                return [run.call(inputs)]
        value = run.call(inputs)
        leaves = [inputs.text, inputs.video, *psi.parameters()]
        upstream = inputs.upstream.to(value.dtype)
        gradients = torch.autograd.grad(value, leaves, upstream, allow_unused=True)
        return [value, *(gradient for gradient in gradients if gradient is not None)]


def _backend(name: str, precision: str = "float32") -> Implementation:
    def make(case: Case, psi: Network) -> Call:
        if case.workload == "similarity":
            return lambda x: gare_similarity(x.text, x.video, psi, x.mask, backend=name)
        loss = GareLoss(
            psi,
            backend=name,
            lambda_direction=0.0 if case.direction == "off" else 0.01,
            direction_samples=DIRECTION_SAMPLES if case.direction == "sampled" else None,
        )
        return lambda x: loss(x.text, x.video, x.scale, x.mask).loss

    def unavailable(case: Case, device: torch.device) -> str | None:
        if precision != "float32" and case.compute_dtype != torch.float32:
            return "only products of float32 are rounded"
        if precision.startswith("tf32") and device.type != "cuda":
            return "on a CPU the same as float32"
        return backend_status(device)[name] or _refusal(make, case, device)

    return Implementation(make, unavailable, precision)


def _refusal(make: Callable[..., Call], case: Case, device: torch.device) -> str | None:
    """What a backend says of this dtype and these frames, asked with the smallest batch."""
    small = replace(case, batch=2)
    psi = make_psi(small, device)
    try:
        with torch.no_grad():
            make(small, psi)(make_inputs(small, device, 1)[0])
    except BackendUnavailableError as error:
        return str(error)
    return None


def _published(
    loss: Callable[..., Tensor],
    similarity: Callable[..., Tensor],
    directions: tuple[str, ...] = ("off", "exact"),
    compiled: bool = False,
) -> Implementation:
    def make(case: Case, psi: Network) -> Call:
        weight = 0.01 if case.direction == "exact" else 0.0
        half = case.torch_dtype != case.compute_dtype
        dropped = _dropout_mask(case, next(psi.parameters()).device) if psi.dropout else 1.0

        def of_tensors(text: Tensor, video: Tensor, scale: Tensor, mask: Tensor) -> Tensor:
            with torch.autocast(text.device.type, case.torch_dtype, enabled=half):
                if case.workload == "similarity":
                    return similarity(text, video, psi, mask, dropout_mask=dropped)
                return loss(
                    text,
                    video,
                    psi,
                    scale,
                    mask,
                    lambda_direction=weight,
                    dropout_mask=dropped,
                )

        run = of_tensors
        if compiled:
            logging.getLogger("torch.utils.cpp_extension").addFilter(_is_news)
            run = torch.compile(of_tensors, dynamic=False)
        return lambda x: run(x.text, x.video, x.scale, x.mask)

    def unavailable(case: Case, device: torch.device) -> str | None:
        if case.direction == "sampled":
            return "the published formulas do not sample the directional diversity"
        return None if case.direction in directions else "the same as published without direction"

    return Implementation(make, unavailable, foreign=compiled)


def _peer(peer: Peer) -> Implementation:
    def make(case: Case, psi: Network) -> Call:
        loss = peer.make()

        def normalized(features: Tensor) -> Tensor:
            return F.normalize(features.to(case.compute_dtype), dim=1).to(case.torch_dtype)

        # The scale is a constant, for not all give it a gradient.
        return lambda x: loss(normalized(x.text), normalized(x.video.squeeze(1)), LOGIT_SCALE)

    def unavailable(case: Case, device: torch.device) -> str | None:
        return peer.unavailable(device, case.torch_dtype)

    return Implementation(make, unavailable, peer.precision, peer.foreign, peer.version)


@functools.lru_cache(maxsize=1)
def _dropout_mask(case: Case, device: torch.device) -> Tensor:
    """The masks that garevla draws, for the published formulas, whose own generator would draw
    others. Made before the clock starts, and one for all forms: in their favor."""
    return reference.pair_dropout_mask(make_psi(case, device), DROPOUT_SEED, case.batch, case.batch)


def _is_news(record: logging.LogRecord) -> bool:
    """Filter of the compiler's log: that there is no GPU is none."""
    return not record.getMessage().startswith("No CUDA runtime is found")


def _similarity(*arguments: Any, **options: Any) -> Tensor:
    return reference.pairs(*arguments, **options).similarity


def _loss_with(direction: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return functools.partial(reference.loss, direction=direction)


# The one list of who can be measured.
IMPLEMENTATIONS: dict[str, Implementation] = {
    PUBLISHED: _published(reference.loss, _similarity),
    UNBOUND: _published(
        _loss_with(reference.direction_diversity_unbound), _similarity, directions=("exact",)
    ),
    COMPILED: _published(_loss_with(vectorized_direction), _similarity, compiled=True),
    CHUNKED: _published(chunked_loss, chunked_similarity),
    **{name: _backend(name) for name in BACKENDS},
    **{
        f"{name}, {precision}": _backend(name, precision)
        for precision in ("bfloat16", "tf32", "tf32x3")
        for name in BACKENDS
        if name != DEFINITION and (name, precision) not in _EXACT
    },
}
NAMES = tuple(IMPLEMENTATIONS)
IMPLEMENTATIONS |= {name: _peer(peer) for name, peer in PEERS.items()}
