"""Optimizer, parameter groups and learning-rate schedule of the published training recipe."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from garevla.encoders.discovla.adapters import FusionAdapter
from garevla.training.config import OptimizerConfig
from garevla.training.model import RetrievalModel


def parameter_groups(
    model: nn.Module,
    clip: nn.Module,
    *,
    learning_rate: float,
    clip_lr_scale: float,
    weight_decay: float,
) -> list[dict[str, Any]]:
    """Groups of AdamW: CLIP's parameters and the new ones, each with and without weight decay.

    Biases, weights of norms and all else that is a vector, and CLIP's logit scale, do not decay;
    CLIP's class embedding and the biases of DiscoVLA's fusion adapters do, as published. Frozen
    parameters are in no group, every other one is in exactly one.

    Args:
        model: the whole model.
        clip: the module inside it that trains at ``learning_rate * clip_lr_scale``.
        learning_rate: of all other parameters.
        clip_lr_scale: published: 1e-3.
        weight_decay: published: 0.2.

    Returns:
        Non-empty groups with ``name`` (``clip``, ``clip_no_decay``, ``new``, ``new_no_decay``),
        ``params``, ``lr`` and ``weight_decay``.
    """
    in_clip = {id(parameter) for parameter in clip.parameters()}
    in_adapters = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, FusionAdapter)
        for parameter in module.parameters()
    }
    groups: dict[str, dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        is_clip = id(parameter) in in_clip
        exempt = parameter.dim() < 2 and not name.endswith("class_embedding")
        exempt = exempt and id(parameter) not in in_adapters
        group_name = ("clip" if is_clip else "new") + ("_no_decay" if exempt else "")
        group = groups.setdefault(
            group_name,
            {
                "name": group_name,
                "params": [],
                "lr": learning_rate * (clip_lr_scale if is_clip else 1.0),
                "weight_decay": 0.0 if exempt else weight_decay,
            },
        )
        group["params"].append(parameter)
    return list(groups.values())


def build_optimizer(
    model: RetrievalModel, config: OptimizerConfig, total_steps: int
) -> tuple[AdamW, LambdaLR]:
    """The optimizer of a model's trainable parameters, and the schedule of its learning rates."""
    optimizer = create_optimizer(
        parameter_groups(
            model,
            model.encoder.clip,
            learning_rate=config.learning_rate,
            clip_lr_scale=config.clip_lr_scale,
            weight_decay=config.weight_decay,
        )
    )
    return optimizer, create_schedule(optimizer, total_steps, config.warmup_proportion)


def create_optimizer(groups: list[dict[str, Any]]) -> AdamW:
    """AdamW with the published betas (0.9, 0.98) and epsilon 1e-6."""
    return AdamW(groups, betas=(0.9, 0.98), eps=1e-6)


def warmup_cosine(step: int, total_steps: int, warmup_proportion: float) -> float:
    """Factor on the learning rate at a step, counted from 0.

    Linear from 0 over the first ``warmup_proportion`` of all steps, then the half cosine over
    *all* steps, as in the published optimizer (BertAdam's ``warmup_cosine``): it starts a little
    below 1 and ends at 0.
    """
    progress = step / total_steps
    if progress < warmup_proportion:
        return progress / warmup_proportion
    return 0.5 * (1.0 + math.cos(math.pi * progress))


def create_schedule(
    optimizer: torch.optim.Optimizer, total_steps: int, warmup_proportion: float
) -> LambdaLR:
    """:func:`warmup_cosine` on every group; call its ``step()`` after each update."""
    return LambdaLR(optimizer, lambda step: warmup_cosine(step, total_steps, warmup_proportion))
