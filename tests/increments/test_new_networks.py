"""A new ψ is one class: of the low-rank kind, or of any other kind. A new loss term is another."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import garevla
from garevla.increments.base import (
    Diversity,
    EncodedVideos,
    GarePairs,
    IncrementNetwork,
    Increments,
    Moments,
)
from garevla.increments.low_rank.factors import IncrementFactors, center, gram
from garevla.increments.low_rank.videos import LowRankNetwork
from garevla.reference import gare as reference
from tests.helpers import random_batch, random_psi, relative_error

EPS = 1e-5


class MeanFramePsi(LowRankNetwork):
    """Δ_ij = W LN(LN(mean of the centered frames of j)) + b: attention that no text moves."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.linear = nn.Linear(dim, dim)

    def forward(self, frame_features: Tensor, frame_mask: Tensor) -> IncrementFactors:
        batch, frames, dim = frame_features.shape
        values = center(frame_features)
        hidden = torch.cat([values, values.new_zeros(batch, 1, dim)], dim=1)
        bias = self.linear.bias.expand(batch, 1, dim)
        return IncrementFactors(
            keys=torch.zeros_like(frame_features),
            key_bias=frame_features.new_zeros(batch, 1, frames),
            value_gram=gram(values) / dim,
            hidden_gram=gram(hidden) / dim,
            basis=torch.cat([F.linear(hidden, self.linear.weight), bias], dim=1),
            layer_norm_eps=(EPS, EPS, EPS),
        )

    def written_out(self, frames: Tensor, mask: Tensor) -> Tensor:
        weight = mask / mask.sum(1, keepdim=True)
        mean = torch.einsum("bf,bfd->bd", weight.to(frames.dtype), center(frames))
        for _ in range(2):
            mean = F.layer_norm(mean, (self.dim,), eps=EPS)
        return self.linear(mean)


def test_a_new_low_rank_network():
    psi = MeanFramePsi(16).double()
    text, frames, mask = random_batch(5, 4, 3, 16)
    dense = garevla.gare_increments(text, frames, psi, mask)
    want = psi.written_out(frames, mask).expand(5, 4, 16)
    assert relative_error(dense, want) < 1e-12
    text, frames, mask = random_batch(4, 4, 3, 16)
    for backend in ("auto", "eager"):
        loss = garevla.GareLoss(psi, beta=0.0, backend=backend)(text, frames, 20.0, mask).loss
        assert torch.autograd.grad(loss, psi.linear.weight)[0].norm() > 0


@dataclass(frozen=True)
class DenseIncrements(Increments):
    """All numbers, as the paper writes them down: another kind than the low-rank one."""

    dense: Tensor  # (A, B, D)

    @property
    def norm(self) -> Tensor:
        return self.dense.norm(dim=2)

    def moments(self) -> Moments:
        return Moments(self.dense.mean(dim=0), self.dense.var(dim=0))

    def directional_diversity(self, diversity: Diversity, backend: str) -> Tensor:
        return reference.direction_diversity(self.dense, diversity.alpha)

    def materialize(self) -> Tensor:
        return self.dense


@dataclass(frozen=True)
class DenseVideos(EncodedVideos):
    psi: garevla.CrossAttentionPsi
    frames: Tensor
    mask: Tensor

    @property
    def num_videos(self) -> int:
        return len(self.frames)

    def pairs(self, text_features: Tensor, pool_temperature: float, backend: str) -> GarePairs:
        similarity, increments = reference.pairs(
            text_features, self.frames, self.psi, self.mask, pool_temperature=pool_temperature
        )
        return GarePairs(similarity, DenseIncrements(increments))


class DensePsi(IncrementNetwork):
    def __init__(self, psi: garevla.CrossAttentionPsi) -> None:
        super().__init__()
        self.dim, self.psi = psi.dim, psi

    def encode_videos(self, frame_features: Tensor, frame_mask: Tensor) -> DenseVideos:
        return DenseVideos(self.psi, frame_features, frame_mask)


@pytest.mark.parametrize("lambda_direction", [0.0, 0.3])
def test_a_new_kind_of_increments(lambda_direction: float):
    psi = random_psi(16, 2).double()
    text, frames, mask = random_batch(6, 6, 4, 16, least_frames=2)
    inputs = text, frames, psi.mean_proj.weight
    outcomes = []
    for network in (psi, DensePsi(psi)):
        loss = garevla.GareDiscoVLALoss(network, beta=0.01, lambda_direction=lambda_direction)
        captions = torch.ones(6, 4, 16).double()
        value = loss(text, frames, 20.0, mask, captions).loss
        similarity = garevla.gare_similarity(text, frames, network, mask)
        increments = garevla.gare_increments(text, frames, network, mask)
        outcomes.append([value, similarity, increments, *torch.autograd.grad(value, inputs)])
    for low_rank, dense in zip(*outcomes, strict=True):
        assert relative_error(low_rank, dense) < 1e-10


@dataclass(frozen=True)
class WithNormOutput(garevla.GareLossOutput):
    norm: Tensor | None = None


class GareLossWithNorm(garevla.GareLoss):
    """GARE's loss and the mean length of the right pairs' increments."""

    def forward(self, text_features, frame_features, logit_scale, frame_mask=None, **options):
        out = super().forward(text_features, frame_features, logit_scale, frame_mask, **options)
        pairs = garevla.gare_pairs(text_features, frame_features, self.psi, frame_mask)
        norm = pairs.increments.norm.diagonal().mean()
        return WithNormOutput(**vars(out) | {"loss": out.loss + 0.1 * norm}, norm=norm)


def test_a_new_loss_term():
    psi = random_psi(16)
    text, frames, mask = random_batch(4, 4, 3, 16, torch.float32)
    plain = garevla.GareLoss(psi)(text, frames, 20.0, mask)
    out = GareLossWithNorm(psi)(text, frames, 20.0, mask)
    assert relative_error(out.loss, plain.loss + 0.1 * out.norm) < 1e-6
    assert torch.equal(out.contrastive, plain.contrastive)
