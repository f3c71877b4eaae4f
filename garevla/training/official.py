"""Published checkpoints in the place of a run's."""

from __future__ import annotations

import os

import torch

from garevla import DiscoVLALoss, GareLoss
from garevla.encoders import load_official
from garevla.training.evaluation_settings import OfficialConfig
from garevla.training.model import RetrievalModel


def load_official_model(
    path: str | os.PathLike[str],
    settings: OfficialConfig | None = None,
    device: torch.device | str = "cpu",
) -> RetrievalModel:
    """A model of published code, in evaluation mode, with that code's similarity: GARE's where the
    checkpoint has ψ, else the mean frame's (CLIP4Clip).

    Args:
        path: the file; see :func:`garevla.encoders.load_official`, whose errors this shares.
        settings: what the file does not say; by default as published.
        device: where to put the model.
    """
    settings = settings or OfficialConfig()
    encoder, psi = load_official(
        path,
        settings.model_name,
        psi_heads=settings.psi_heads,
        max_frames=settings.max_frames,
        context_length=settings.context_length,
        padding=settings.padding,
    )
    loss = (
        DiscoVLALoss() if psi is None else GareLoss(psi, pool_temperature=settings.pool_temperature)
    )
    return RetrievalModel(encoder, loss).to(device).eval()
