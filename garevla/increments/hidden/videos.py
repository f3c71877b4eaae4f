"""Increments with a hidden vector per pair, Δ_ij = W y_ij + b, as the head sees them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from garevla.increments.base import (
    Diversity,
    EncodedVideos,
    GarePairs,
    Increments,
    Moments,
    PairStatistics,
    VideoParts,
)
from garevla.increments.low_rank.factors import center
from garevla.ops.backends import resolve
from garevla.ops.hidden.factors import HiddenLayer, HiddenPairs, axis
from garevla.ops.hidden.single import increments, sampled_diversity


@dataclass(frozen=True)
class HiddenVideos(EncodedVideos):
    """Factors of B videos."""

    layer: HiddenLayer
    factors: dict[str, Tensor]
    """Those of the operations (garevla/ops/hidden/factors.py) that no text changes."""
    text_map: Tensor | None
    """(H, D), takes centered texts to ``text_hidden``, for the kind of layer that has it."""
    seed: Tensor | None = None
    first_text: int = 0
    first_video: int = 0

    @property
    def dropout_seed(self) -> Tensor | None:
        return self.seed

    def placed(
        self, first_text: int, first_video: int, dropout_seed: Tensor | None
    ) -> HiddenVideos:
        return replace(self, first_text=first_text, first_video=first_video, seed=dropout_seed)

    def parts(self) -> VideoParts:
        kind, factors = self.layer.kind, self.factors
        of_videos = {name: x for name, x in factors.items() if axis(kind, name) == "B"}
        shared = {name: x for name, x in factors.items() if name not in of_videos}
        if self.text_map is not None:
            shared["text_map"] = self.text_map
        return VideoParts(of_videos, shared, asdict(self.layer), ("frames",))

    @classmethod
    def from_parts(cls, parts: VideoParts) -> HiddenVideos:
        shared = dict(parts.shared)
        text_map = shared.pop("text_map", None)
        return cls(HiddenLayer(**parts.constants), {**parts.of_videos, **shared}, text_map)

    def similarity(self, text_features: Tensor, pool_temperature: float, backend: str) -> Tensor:
        arguments = self._with(text_features), pool_temperature
        return resolve("hidden_similarity", backend, text_features.device, *arguments)(*arguments).T

    def pairs(self, text_features: Tensor, pool_temperature: float, backend: str) -> GarePairs:
        return _pairs(self._with(text_features), pool_temperature, None, backend)[0]

    def statistics(
        self,
        text_features: Tensor,
        pool_temperature: float,
        logit_scale: Tensor,
        targets: Tensor,
        diversity: Diversity | None,
        backend: str,
        *,
        with_similarity: bool = False,
    ) -> PairStatistics:
        hidden = self._with(text_features)
        # The exact diversity shares the increments with the rest.
        alpha = direction = None
        if diversity is not None and diversity.samples is None:
            alpha = diversity.alpha
        elif diversity is not None and diversity.samples is not None:
            direction = sampled_diversity(hidden, diversity.samples, diversity.alpha)
        if with_similarity:
            pairs, exact = _pairs(hidden, pool_temperature, alpha, backend)
            found = pairs.statistics(logit_scale, targets, None, backend)
            return found._replace(direction=direction if alpha is None else exact)
        arguments = hidden, pool_temperature, logit_scale, targets, alpha
        operation = resolve("hidden_statistics", backend, text_features.device, *arguments)
        found = operation(*arguments)
        return PairStatistics(
            row_logsumexp=found.row_logsumexp,
            column_logsumexp=found.column_logsumexp,
            target_similarity=found.target_similarity,
            norm_mean=found.norm_mean,
            norm_variance=found.norm_variance,
            moments=Moments(found.mean, found.variance),
            direction=direction if alpha is None else found.direction,
        )

    def _with(self, text_features: Tensor) -> HiddenPairs:
        factors = {**self.factors, "text": text_features}
        if self.text_map is not None:
            factors["text_hidden"] = F.linear(center(text_features), self.text_map)
        seed = self.seed
        if seed is not None and (self.first_text or self.first_video):
            origin = torch.tensor([self.first_text, self.first_video])
            seed = torch.cat([seed.unsqueeze(0), origin])
        return HiddenPairs(self.layer, factors, seed)


def _pairs(
    hidden: HiddenPairs, pool_temperature: float, alpha: float | None, backend: str
) -> tuple[GarePairs, Tensor]:
    """All pairs, and the exact directional diversity where α is given."""
    arguments = hidden, pool_temperature, alpha
    terms = resolve("hidden_terms", backend, hidden.text.device, *arguments)(*arguments)
    known = HiddenIncrements(
        hidden, terms.norm.T, Moments(terms.mean, terms.variance), pool_temperature
    )
    return GarePairs(terms.similarity.T, known), terms.direction


@dataclass(frozen=True)
class HiddenIncrements(Increments):
    """What is known of them; the increments themselves are computed anew where they are needed."""

    pairs: HiddenPairs
    norm: Tensor  # (A, B) ‖Δ_ij‖
    over_texts: Moments
    pool_temperature: float

    def moments(self) -> Moments:
        return self.over_texts

    def directional_diversity(self, diversity: Diversity, backend: str) -> Tensor:
        if diversity.samples is not None:
            return sampled_diversity(self.pairs, diversity.samples, diversity.alpha)
        arguments = self.pairs, self.pool_temperature, diversity.alpha
        operation = resolve("hidden_terms", backend, self.norm.device, *arguments)
        return operation(*arguments).direction

    def materialize(self) -> Tensor:
        texts = torch.arange(self.norm.shape[0], device=self.norm.device)
        videos = torch.arange(self.norm.shape[1], device=self.norm.device)
        found = [increments(self.pairs, texts[i].expand_as(videos), videos) for i in texts]
        return torch.stack(found)
