"""A training step before and after each option of a run: encoder, head and update of the weights.

On a CPU, times are the processor's, of all threads: other processes do not count.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks import memory
from benchmarks.timing import seconds_of, summarize
from garevla.training.compilation import compile_model
from garevla.training.model import RetrievalModel
from garevla.training.optim import create_optimizer, parameter_groups

Encode = Callable[[RetrievalModel], list[Tensor]]
Head = Callable[[list[Tensor]], Tensor]


@dataclass(frozen=True)
class Options:
    """Those of a training run."""

    fused: bool = False
    activation_checkpointing: bool = False
    compile: bool = False
    bfloat16: bool = False


OPTIONS = {
    "none": Options(),
    "optimizer.fused": Options(fused=True),
    "run.activation_checkpointing": Options(activation_checkpointing=True),
    "run.precision bfloat16": Options(bfloat16=True),
    "run.compile": Options(compile=True),
}


def measure(
    model: RetrievalModel,
    encode: Encode,
    head_of: Callable[[RetrievalModel], Head],
    names: Sequence[str],
    repeats: int,
) -> list[dict[str, Any]]:
    """Seconds of a step and its parts, and its peak growth of memory: a row per option.

    Args:
        model: a copy of it trains with each option.
        encode: features of a batch, and the scale.
        head_of: the loss of what ``encode`` returned.
        names: of :data:`OPTIONS`.
        repeats: samples, taken in turns.
    """
    device = next(model.parameters()).device
    calls, peaks = {}, {}
    for name in names:
        trained = copy.deepcopy(model)
        for part, call in _parts(trained, encode, head_of(trained), OPTIONS[name]).items():
            call()
            calls[name, part] = call
        peaks[name] = memory.peak_growth(calls[name, "step"], device)
    samples: dict[tuple[str, str], list[float]] = {key: [] for key in calls}
    for _ in range(repeats):
        for key, call in calls.items():
            samples[key].append(_seconds(call, device))
    return [
        {
            "option": name,
            **{
                f"{part}_seconds": summarize(samples[name, part]).median
                for part in ("step", "encoder", "head", "update")
            },
            "step_peak_growth_bytes": peaks[name],
        }
        for name in names
    ]


def _parts(
    model: RetrievalModel, encode: Encode, head: Head, options: Options
) -> dict[str, Callable[[], object]]:
    """Calls of the step and its parts; the update takes the gradients of an earlier one."""
    device = next(model.parameters()).device
    autocast = partial(torch.autocast, device.type, torch.bfloat16, enabled=options.bfloat16)
    optimizer = create_optimizer(
        parameter_groups(
            model, model.encoder.clip, learning_rate=1e-6, clip_lr_scale=1.0, weight_decay=0.2
        ),
        fused=options.fused,
    )
    if options.activation_checkpointing:
        model.encoder.checkpoint_activations()
    if options.compile:
        compile_model(model)
    with autocast():
        features = [x.detach().requires_grad_() for x in encode(model)]
    upstream = [torch.randn_like(x) / x.numel() for x in features]

    def run_encoder() -> None:
        optimizer.zero_grad()
        with autocast():
            encoded = encode(model)
        learnt = [(x, up) for x, up in zip(encoded, upstream, strict=True) if x.requires_grad]
        torch.autograd.backward(*zip(*learnt, strict=True))

    def run_head() -> None:
        with autocast():
            loss = head(features)
        loss.backward()

    def run_step() -> None:
        optimizer.zero_grad()
        with autocast():
            loss = head(encode(model))
        loss.backward()
        optimizer.step()

    return {"step": run_step, "encoder": run_encoder, "head": run_head, "update": optimizer.step}


def _seconds(call: Callable[[], object], device: torch.device) -> float:
    if device.type != "cpu":
        return seconds_of(call, device)
    started = time.process_time()
    call()
    return time.process_time() - started
