"""The whole GARE loss as a drop-in module."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypedDict

import torch
from torch import Tensor, nn

from garevla.head.info_nce import (
    SoftTargets,
    as_pairs,
    check_label_smoothing,
    info_nce_of_logsumexps,
    info_nce_of_weighted,
    is_one_each,
    right_pairs,
    smoothing_weights,
    weights_of,
)
from garevla.head.regularizers import (
    Reduction,
    bottleneck_of_moments,
    check_reduction,
    draw_samples,
    trust_region_of_variance,
)
from garevla.head.sharded_statistics import Batch, sharded_statistics
from garevla.head.sharding import Layout, Shard, check_synchronized, shard_of, shard_seed
from garevla.head.similarity import Corrects, check_corrects, encode, gare_similarity
from garevla.head.texts import Texts
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

    With ``corrects="video"``, texts and videos change places in the regularizers, too.

    Without the exact directional diversity (``lambda_direction=0`` or ``direction_samples``), the
    compiled backends stream: no (A, B) tensor exists either, and memory beyond what ψ hands out for
    the videos grows as A + B (docs/derivation.md).

    A batch may be of one text or one video. What compares texts is 0 with no gradient for one text
    (``bottleneck``), what compares videos for one video (``trust_region``, ``direction``).

    Args:
        psi: the increment network; its parameters are this module's.
        pool_temperature: τ_p of the text-conditioned pooling, which divides dot products of
            features: of those much longer than CLIP's nearly one frame counts.
        alpha: α of the directional diversity.
        beta: weight of the information bottleneck (summed over D: 1e-4; mean over D: 0.07).
        lambda_direction: weight of the directional diversity, the only term cubic in the batch;
            0 leaves it out.
        direction_samples: n ≥ 2, to estimate the directional diversity from n videos per text,
            drawn anew each time from torch's global generator, where the cubic term is out of
            reach; the estimate of its inner mean is unbiased. ``None``, or n ≥ B, is exact.
        lambda_trust: weight of the trust region.
        trust_floor: the trust region is 0 once below −trust_floor.
        backend, corrects: as in :func:`garevla.gare_similarity`.
        bottleneck_reduction: ``"sum"`` (published code) or ``"mean"`` (paper) over D.
        label_smoothing: ε of InfoNCE, as in :func:`garevla.info_nce`. Where the loss streams, all
            pairs are scored once more for it.
        group: processes that share a batch: a process group of torch.distributed, or ``True`` for
            all. Each gives its own texts and videos, as many as it has; values are those of the
            whole batch, and gradients, averaged over the group by DistributedDataParallel, those of
            one process (docs/distributed.md).
        synchronized: do not check that ψ is part of a module that DistributedDataParallel wraps,
            which averages its gradients: for FSDP, or where you average them yourself.

    Raises:
        TypeError: psi is no increment network.
        ValueError: a negative weight, a temperature or α that is not positive, fewer than two
            direction_samples, an unknown backend or side to correct.
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
        corrects: Corrects = "text",
        label_smoothing: float = 0.0,
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
        check_corrects(corrects)
        check_label_smoothing(label_smoothing)
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
        self.corrects: Corrects = corrects
        self.label_smoothing = label_smoothing
        self.group, self.synchronized = group, synchronized

    def extra_repr(self) -> str:
        return (
            f"pool_temperature={self.pool_temperature}, alpha={self.alpha}, beta={self.beta}, "
            f"lambda_direction={self.lambda_direction}, lambda_trust={self.lambda_trust}, "
            f"trust_floor={self.trust_floor}, backend={self.backend!r}, "
            f"corrects={self.corrects!r}, label_smoothing={self.label_smoothing}"
        )

    def similarity(
        self,
        text_features: Tensor | Texts,
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
            corrects=self.corrects,
        )

    def forward(
        self,
        text_features: Tensor | Texts,
        frame_features: Tensor | Videos,
        logit_scale: Tensor | float,
        frame_mask: Tensor | None = None,
        *,
        targets: SoftTargets | None = None,
        return_similarity: bool = False,
    ) -> GareLossOutput:
        """The loss of a batch of A texts and B videos.

        Args:
            text_features: (A, D), not normalized; to correct videos, :class:`garevla.Texts`.
            frame_features: (B, F, D), not normalized, or :class:`garevla.Videos` that this ψ made.
            logit_scale: the factor itself, not its logarithm; CLIP clamps it at 100.
            frame_mask: (B, F), 1 or True for a valid frame.
            targets: the video of each text, or several, as in :func:`garevla.info_nce`. Where the
                loss streams, all pairs are scored once more for several, or for any targets where
                videos are corrected.
            return_similarity: also return the (A, B) similarity, detached; with a group, of all
                processes' texts and the videos of this one; where videos are corrected, of all
                processes' videos and the texts of this one.

        Raises:
            NotImplementedError: a group and several videos a text, or any targets where videos are
                corrected.
            TypeError, ValueError: as in :func:`garevla.gare_similarity` and
                :func:`garevla.info_nce`.
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
        text_features: Tensor | Texts,
        frame_features: Tensor | Videos,
        logit_scale: Tensor | float,
        frame_mask: Tensor | None,
        targets: SoftTargets | None,
        *,
        with_similarity: bool,
        shard: Shard | None = None,
    ) -> tuple[GareTerms, Tensor | None]:
        """The terms and their weighted sum, and the similarity (A, B), which a streaming backend
        computes only if asked for; where processes share the batch, of all their texts and the
        videos (B) of this one. That part of the batch is found out unless it is given."""
        logit_scale = as_logit_scale(logit_scale)
        shard = shard or self.shard(text_features, frame_features, frame_mask)
        exchanged = self.corrects == "video"
        if shard is not None and exchanged and targets is not None:
            raise NotImplementedError(
                "targets cannot be given where processes share a batch and videos are corrected: "
                "text i of a process must belong to its video i"
            )
        if shard is not None and isinstance(text_features, Texts):
            # Texts that are exchanged must have one shape.
            text_features = text_features.padded(shard.layouts[0].frames)
        with shard_seed(shard):
            corrected, others = encode(
                text_features, frame_features, self._psi(frame_features), frame_mask, self.corrects
            )
        num_texts, num_videos = len(text_features), len(frame_features)
        num_columns = num_texts if exchanged else num_videos
        with full_precision(corrected):
            device, dtype = corrected.device, corrected.dtype
            right = right_pairs(targets, num_texts, num_videos, corrected)
            scale = torch.as_tensor(logit_scale, device=device).to(dtype)
            weights = known = None
            if is_one_each(right) and not (exchanged and targets is not None):
                columns = right
                if self.label_smoothing and shard is None:
                    weights = smoothing_weights(columns, num_columns, dtype)
            elif shard is not None:
                raise NotImplementedError(
                    "a text has one video where processes share a batch: targets (A,)"
                )
            else:
                weights, known = weights_of(
                    as_pairs(right, num_videos, dtype), self.label_smoothing
                )
                weights = weights.T if exchanged else weights
                # Operators take one column for each row; what they say of it is not looked at.
                columns = torch.zeros(len(corrected), dtype=torch.int64, device=device)
            batch = Batch(corrected, others, columns, scale, with_similarity, weights)
            if shard is None:
                diversity = self._diversity(len(corrected), num_columns, device)
                statistics = batch.statistics(self.pool_temperature, diversity, self.backend)
                target_logits = scale * statistics.target_similarity
            else:
                diversity = self._diversity(shard.num_texts, shard.num_videos, device)
                statistics, target_logits, columns = sharded_statistics(
                    batch,
                    shard,
                    self.pool_temperature,
                    diversity,
                    self.backend,
                    smooth=self.label_smoothing > 0,
                )
            logsumexps = statistics.row_logsumexp, statistics.column_logsumexp
            weighted = statistics.weighted_similarity
            logits = scale * (torch.zeros_like(scale) if weighted is None else weighted)
            if known is None:
                contrastive = info_nce_of_logsumexps(
                    *logsumexps, target_logits, columns, self.label_smoothing, logits
                )
            else:
                by_side = logsumexps[::-1] if exchanged else logsumexps
                contrastive = info_nce_of_weighted(*by_side, known, logits)
            terms = self._combine(contrastive, statistics, others.dropout_seed)
        similarity = statistics.similarity
        return terms, similarity.T if similarity is not None and exchanged else similarity

    def shard(
        self,
        text_features: Tensor | Texts,
        frame_features: Tensor | Videos,
        frame_mask: Tensor | None,
        captions: Tensor | None = None,
    ) -> Shard | None:
        """This process's part of the batch, where it is shared; where videos are corrected, texts
        and videos have changed places in it."""
        if self.group is None:
            return None
        if isinstance(frame_features, Videos):
            raise TypeError("a loss with a group takes frame_features, not videos that were kept")
        sizes = len(text_features), len(frame_features)
        words = text_features.word_features if isinstance(text_features, Texts) else None
        layout = Layout.of(frame_features, frame_mask, captions, words)
        device = text_features.device
        shard = shard_of(self.group, *sizes, device, layout, draw=self.psi.draws_seed)
        if shard is not None and not self.synchronized:
            check_synchronized(self.psi, "psi")
        return shard.exchanged() if shard is not None and self.corrects == "video" else shard

    def _psi(self, frame_features: Tensor | Videos) -> IncrementNetwork | None:
        """None for kept videos, which ψ has seen before."""
        return None if isinstance(frame_features, Videos) else self.psi

    def _combine(
        self, contrastive: Tensor, statistics: PairStatistics, dropout_seed: Tensor | None
    ) -> GareTerms:
        """The terms and their weighted sum."""
        one_row = len(statistics.row_logsumexp) < 2
        one_column = len(statistics.column_logsumexp) < 2
        bottleneck, trust, direction = None, None, statistics.direction
        zero = contrastive.new_zeros(())
        if self.beta and one_row:
            bottleneck = zero
        elif self.beta:
            bottleneck = bottleneck_of_moments(statistics.moments, self.bottleneck_reduction)
        if self.lambda_trust and one_column:
            trust = zero
        elif self.lambda_trust:
            trust = trust_region_of_variance(statistics.norm_variance, self.trust_floor)
        if self.lambda_direction and one_column:
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

    def _diversity(self, num_rows: int, num_columns: int, device: torch.device) -> Diversity | None:
        if not self.lambda_direction or num_columns < 2:
            return None
        per_text = self.direction_samples
        if per_text is None or per_text >= num_columns:
            return Diversity(self.alpha, samples=None)
        return Diversity(self.alpha, draw_samples(num_rows, num_columns, per_text, device))
