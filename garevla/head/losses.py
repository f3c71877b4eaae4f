"""The whole GARE loss as a drop-in module."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypedDict

import torch
from torch import Tensor, nn

from garevla.head.info_nce import Targets, check_targets, info_nce_of_logsumexps
from garevla.head.regularizers import (
    Reduction,
    bottleneck_of_moments,
    check_reduction,
    draw_samples,
    trust_region_of_variance,
)
from garevla.head.sharded_statistics import Batch, sharded_statistics
from garevla.head.sharding import Layout, Shard, check_synchronized, shard_of, shard_seed
from garevla.head.similarity import encode, gare_similarity
from garevla.head.videos import Videos
from garevla.increments.base import Diversity, IncrementNetwork, PairStatistics
from garevla.ops.backends import check_backend
from garevla.ops.precision import full_precision
from garevla.utils.outputs import Output
from garevla.utils.validation import as_logit_scale, check_positive, check_psi

if TYPE_CHECKING:
    from garevla.head.sharding import Group


@dataclass(frozen=True)
class GareLossOutput(Output):
    """The GARE loss and its terms, 0-d tensors; the terms are not multiplied by their weights.

    ``output["loss"]`` and ``output[0]`` are ``output.loss``; by name and by position, what is None
    is passed over.
    """

    loss: Tensor
    """contrastive + β·bottleneck + λ_trust·trust_region + λ_direction·direction"""
    contrastive: Tensor
    bottleneck: Tensor | None
    """None where its weight is 0: not computed."""
    direction: Tensor | None
    """None where its weight is 0: not computed."""
    trust_region: Tensor | None
    """None where its weight is 0: not computed."""
    similarity: Tensor | None = None
    """(A, B), detached, where it was asked for."""
    dropout_seed: Tensor | None = None
    """0-d int64 on the CPU, of the pairs' dropout masks (:func:`garevla.dropout_seed`); None where
    no pair has one."""


class GareTerms(TypedDict):
    """The fields of :class:`GareLossOutput` but the similarity."""

    loss: Tensor
    contrastive: Tensor
    bottleneck: Tensor | None
    direction: Tensor | None
    trust_region: Tensor | None
    dropout_seed: Tensor | None


class GareLoss(nn.Module):
    """The whole GARE training loss (NeurIPS 2025): InfoNCE on the corrected similarity and the
    three regularizers of the increments, without any (A, B, D) tensor.

    Without the exact directional diversity (``lambda_direction=0`` or ``direction_samples``), the
    compiled backends stream: no (A, B) tensor exists either, and memory beyond what ψ hands out for
    the videos grows as A + B (docs/derivation.md).

    A batch may be of one text or one video. What compares texts is 0 with no gradient for one text
    (``bottleneck``), what compares videos for one video (``trust_region``, ``direction``).

    Args:
        psi: the increment network; its parameters are this module's.
        pool_temperature: τ_p of the text-conditioned pooling.
        alpha: α of the directional diversity.
        beta: weight of the information bottleneck (summed over D: 1e-4; mean over D: 0.07).
        lambda_direction: weight of the directional diversity, the only term cubic in the batch;
            0 leaves it out.
        direction_samples: n ≥ 2, to estimate the directional diversity from n videos per text,
            drawn anew each time from torch's global generator, where the cubic term is out of
            reach; the estimate of its inner mean is unbiased. ``None``, or n ≥ B, is exact.
        lambda_trust: weight of the trust region.
        trust_floor: the trust region is 0 once below −trust_floor.
        backend: as in :func:`garevla.gare_similarity`.
        bottleneck_reduction: ``"sum"`` (published code) or ``"mean"`` (paper) over D.
        group: processes that share a batch: a process group of torch.distributed, or ``True`` for
            all. Each gives its own texts and videos, as many as it has; values are those of the
            whole batch, and gradients, averaged over the group by DistributedDataParallel, those of
            one process (docs/distributed.md).
        synchronized: do not check that ψ is part of a module that DistributedDataParallel wraps,
            which averages its gradients: for FSDP, or where you average them yourself.

    Raises:
        TypeError: psi is no increment network.
        ValueError: a negative weight, a temperature or α that is not positive, fewer than two
            direction_samples, an unknown backend.
    """

    def __init__(
        self,
        psi: IncrementNetwork,
        *,
        pool_temperature: float = 3.0,
        alpha: float = 2.0,
        beta: float = 1e-4,
        lambda_direction: float = 0.01,
        direction_samples: int | None = None,
        lambda_trust: float = 0.01,
        trust_floor: float = 0.5,
        backend: str = "auto",
        bottleneck_reduction: Reduction = "sum",
        group: Group = None,
        synchronized: bool = False,
    ) -> None:
        super().__init__()
        check_psi(psi)
        check_positive("pool_temperature", pool_temperature)
        check_positive("alpha", alpha)
        weights = {"beta": beta, "lambda_direction": lambda_direction, "lambda_trust": lambda_trust}
        for name, value in {**weights, "trust_floor": trust_floor}.items():
            if not 0.0 <= value < float("inf"):
                raise ValueError(f"{name} must be a finite number, at least 0, got {value}")
        check_reduction(bottleneck_reduction)
        if direction_samples is not None and direction_samples < 2:
            raise ValueError(f"direction_samples must be at least 2, got {direction_samples}")
        check_backend(backend)
        self.psi = psi
        self.pool_temperature = pool_temperature
        self.alpha = alpha
        self.beta = beta
        self.lambda_direction = lambda_direction
        self.direction_samples = direction_samples
        self.lambda_trust = lambda_trust
        self.trust_floor = trust_floor
        self.backend = backend
        self.bottleneck_reduction = bottleneck_reduction
        self.group, self.synchronized = group, synchronized

    def extra_repr(self) -> str:
        return (
            f"pool_temperature={self.pool_temperature}, alpha={self.alpha}, beta={self.beta}, "
            f"lambda_direction={self.lambda_direction}, lambda_trust={self.lambda_trust}, "
            f"trust_floor={self.trust_floor}, backend={self.backend!r}"
        )

    def similarity(
        self,
        text_features: Tensor,
        frame_features: Tensor | Videos,
        frame_mask: Tensor | None = None,
    ) -> Tensor:
        """The similarity (A, B) that this loss trains: :func:`garevla.gare_similarity` with its ψ,
        temperature and backend, whose arguments and errors it shares."""
        return gare_similarity(
            text_features,
            frame_features,
            self._psi(frame_features),
            frame_mask,
            pool_temperature=self.pool_temperature,
            backend=self.backend,
        )

    def forward(
        self,
        text_features: Tensor,
        frame_features: Tensor | Videos,
        logit_scale: Tensor | float,
        frame_mask: Tensor | None = None,
        *,
        targets: Targets | None = None,
        return_similarity: bool = False,
    ) -> GareLossOutput:
        """The loss of a batch of A texts and B videos.

        Args:
            text_features: (A, D), not normalized.
            frame_features: (B, F, D), not normalized, or :class:`garevla.Videos` that this ψ made.
            logit_scale: the factor itself, not its logarithm; CLIP clamps it at 100.
            frame_mask: (B, F), 1 or True for a valid frame.
            targets: (A,), the video of each text, as in :func:`info_nce`.
            return_similarity: also return the (A, B) similarity, detached; with a group, of all
                processes' texts and the videos of this one.

        Raises:
            TypeError, ValueError: as in :func:`garevla.gare_similarity` and :func:`info_nce`.
        """
        terms, similarity = self.terms(
            text_features,
            frame_features,
            logit_scale,
            frame_mask,
            targets,
            with_similarity=return_similarity,
        )
        if similarity is None or not return_similarity:
            return GareLossOutput(**terms)
        return GareLossOutput(**terms, similarity=similarity.detach())

    def terms(
        self,
        text_features: Tensor,
        frame_features: Tensor | Videos,
        logit_scale: Tensor | float,
        frame_mask: Tensor | None,
        targets: Targets | None,
        *,
        with_similarity: bool,
        shard: Shard | None = None,
    ) -> tuple[GareTerms, Tensor | None]:
        """The terms and their weighted sum, and the similarity (A, B), which a streaming backend
        computes only if asked for; where processes share the batch, of all their texts and the
        videos (B) of this one. That part of the batch is found out unless it is given."""
        logit_scale = as_logit_scale(logit_scale)
        shard = shard or self.shard(text_features, frame_features, frame_mask)
        with shard_seed(shard):
            text, videos = encode(
                text_features, frame_features, self._psi(frame_features), frame_mask
            )
        num_texts, num_videos = len(text_features), len(frame_features)
        with full_precision(text):
            targets = check_targets(targets, num_texts, num_videos, text.device)
            scale = torch.as_tensor(logit_scale, device=text.device).to(text.dtype)
            batch = Batch(text, videos, targets, scale, with_similarity)
            if shard is None:
                diversity = self._diversity(num_texts, num_videos, text.device)
                statistics = batch.statistics(self.pool_temperature, diversity, self.backend)
                target_logits = scale * statistics.target_similarity
            else:
                diversity = self._diversity(shard.num_texts, shard.num_videos, text.device)
                statistics, target_logits, targets = sharded_statistics(
                    batch, shard, self.pool_temperature, diversity, self.backend
                )
            terms = self._combine(statistics, target_logits, targets, videos.dropout_seed)
        return terms, statistics.similarity

    def shard(
        self,
        text_features: Tensor,
        frame_features: Tensor | Videos,
        frame_mask: Tensor | None,
        captions: Tensor | None = None,
    ) -> Shard | None:
        """This process's part of the batch, where it is shared."""
        if self.group is None:
            return None
        if isinstance(frame_features, Videos):
            raise TypeError("a loss with a group takes frame_features, not videos that were kept")
        sizes = len(text_features), len(frame_features)
        layout = Layout.of(frame_features, frame_mask, captions)
        shard = shard_of(self.group, *sizes, text_features.device, layout, draw=self.psi.draws_seed)
        if shard is not None and not self.synchronized:
            check_synchronized(self.psi, "psi")
        return shard

    def _psi(self, frame_features: Tensor | Videos) -> IncrementNetwork | None:
        """None for kept videos, which ψ has seen before."""
        return None if isinstance(frame_features, Videos) else self.psi

    def _combine(
        self,
        statistics: PairStatistics,
        target_logits: Tensor,
        targets: Tensor,
        dropout_seed: Tensor | None,
    ) -> GareTerms:
        """The terms and their weighted sum."""
        contrastive = info_nce_of_logsumexps(
            statistics.row_logsumexp,
            statistics.column_logsumexp,
            target_logits,
            targets,
        )
        one_text = len(statistics.row_logsumexp) < 2
        one_video = len(statistics.column_logsumexp) < 2
        bottleneck, trust, direction = None, None, statistics.direction
        zero = contrastive.new_zeros(())
        if self.beta and one_text:
            bottleneck = zero
        elif self.beta:
            bottleneck = bottleneck_of_moments(statistics.moments, self.bottleneck_reduction)
        if self.lambda_trust and one_video:
            trust = zero
        elif self.lambda_trust:
            trust = trust_region_of_variance(statistics.norm_variance, self.trust_floor)
        if self.lambda_direction and one_video:
            direction = zero
        loss = contrastive
        for weight, term in (
            (self.beta, bottleneck),
            (self.lambda_trust, trust),
            (self.lambda_direction, direction),
        ):
            if term is not None:
                loss = loss + weight * term
        return {
            "loss": loss,
            "contrastive": contrastive,
            "bottleneck": bottleneck,
            "direction": direction,
            "trust_region": trust,
            "dropout_seed": dropout_seed,
        }

    def _diversity(self, num_texts: int, num_videos: int, device: torch.device) -> Diversity | None:
        if not self.lambda_direction or num_videos < 2:
            return None
        per_text = self.direction_samples
        if per_text is None or per_text >= num_videos:
            return Diversity(self.alpha, samples=None)
        return Diversity(self.alpha, draw_samples(num_texts, num_videos, per_text, device))
