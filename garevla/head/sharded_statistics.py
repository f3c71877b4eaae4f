"""The statistics of a batch that several processes share (garevla/head/sharding.py)."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from garevla.head.info_nce import (
    Targets,
    check_targets,
    info_nce,
    info_nce_of_logsumexps,
    smoothing_weights,
)
from garevla.head.pair_weights import PairWeights
from garevla.head.sharding import Shard
from garevla.increments.base import Diversity, EncodedVideos, Moments, PairStatistics


class Batch(NamedTuple):
    """Texts and videos of one process; where videos are corrected, mean frames in the place of the
    texts, and texts in that of the videos."""

    text: Tensor  # (A, D)
    videos: EncodedVideos
    targets: Tensor  # (A,) int64, among these videos
    logit_scale: Tensor  # 0-d
    with_similarity: bool  # whether the pairs' similarities are wanted, too
    weights: PairWeights | None = None  # of the pairs, whose weighted sum is wanted
    first_video: int = 0  # in the whole batch

    def statistics(
        self, pool_temperature: float, diversity: Diversity | None, backend: str
    ) -> PairStatistics:
        """Of all pairs."""
        found = self.videos.statistics(
            self.text,
            pool_temperature,
            self.logit_scale,
            self.targets,
            diversity,
            backend,
            with_similarity=self.with_similarity,
        )
        if self.weights is None:
            return found
        if found.similarity is not None:
            weighted = self.weights.weigh(found.similarity)
        else:
            weighted = self.weights.weigh_pairs(
                self.text, self.videos, pool_temperature, backend, self.first_video
            )
        return found._replace(weighted_similarity=weighted)


def sharded_statistics(
    own: Batch,
    shard: Shard,
    pool_temperature: float,
    diversity: Diversity | None,
    backend: str,
    *,
    smooth: bool = False,
) -> tuple[PairStatistics, Tensor, Tensor]:
    """Statistics of the whole batch.

    Args:
        own: of this process.
        diversity: of the whole batch.
        smooth: whether the sum with :func:`smoothing_weights` is wanted.

    Returns:
        The statistics; of the right pairs alone, and of all texts: logits (A) and videos (A) int64.
        ``similarity`` has all texts and this process's videos.
    """
    text = shard.gather(own.text, shard.text_counts)
    targets = shard.gather(own.targets + shard.videos.start, shard.text_counts)
    # Other processes' texts have their video elsewhere: whatever stands there is not looked at.
    here = torch.zeros_like(targets)
    here[shard.texts] = own.targets
    wide = own._replace(
        text=text,
        videos=own.videos.placed(0, shard.videos.start, own.videos.dropout_seed),
        targets=here,
        # Streaming operators have no gradient of a single video's mean norm.
        with_similarity=own.with_similarity or shard.video_counts[shard.rank] == 1,
    )
    if smooth:
        every = smoothing_weights(targets, shard.num_videos, text.dtype)
        wide = wide._replace(weights=every.columns(shard.videos), first_video=shard.videos.start)
    found = wide.statistics(pool_temperature, None, backend)
    target_logits = own.logit_scale * found.target_similarity[shard.texts]
    statistics, logits = _complete(found, target_logits, shard)
    if found.weighted_similarity is not None:
        weighted = shard.complete_by_process(found.weighted_similarity).sum()
        statistics = statistics._replace(weighted_similarity=weighted)
    if diversity is not None:
        direction = _direction(own, targets, shard, pool_temperature, diversity, backend)
        statistics = statistics._replace(direction=direction)
    return statistics, logits, targets


def _direction(
    own: Batch,
    targets: Tensor,
    shard: Shard,
    pool_temperature: float,
    diversity: Diversity,
    backend: str,
) -> Tensor:
    """Directional diversity of the whole batch: of the own texts with all videos, then summed."""
    if (samples := diversity.samples) is not None:
        dist.broadcast(samples, dist.get_global_rank(shard.group, 0), group=shard.group)
        diversity = diversity._replace(samples=samples[shard.texts])
    batch = own._replace(
        videos=_all_videos(own.videos, shard), targets=targets[shard.texts], with_similarity=False
    )
    direction = batch.statistics(pool_temperature, diversity, backend).direction
    assert direction is not None  # it was asked for
    return shard.complete_by_process(direction * (len(own.text) / shard.num_texts)).sum()


def _complete(
    own: PairStatistics, target_logits: Tensor, shard: Shard
) -> tuple[PairStatistics, Tensor]:
    """Statistics of the whole batch from those of all texts with the own videos, and the right
    pairs' logits (A) from those of the own texts."""
    counts = shard.video_counts
    by_text = torch.stack([own.row_logsumexp, own.norm_mean, own.norm_variance])
    rows, means, variances = shard.complete_by_process(by_text).unbind(dim=1)
    videos = torch.tensor(counts, dtype=means.dtype, device=means.device).unsqueeze(1)
    mean = (videos * means).sum(dim=0) / shard.num_videos
    squares = (videos - 1) * variances + videos * (means - mean).square()
    parts = own.column_logsumexp.unsqueeze(1), own.moments.mean, own.moments.variance
    sizes = [part.shape[1] for part in parts]
    column, *moments = shard.complete(torch.cat(parts, dim=1), counts).split(sizes, dim=1)
    statistics = own._replace(
        row_logsumexp=rows.logsumexp(dim=0),
        column_logsumexp=column.squeeze(1),
        norm_mean=mean,
        norm_variance=squares.sum(dim=0) / max(shard.num_videos - 1, 1),
        moments=Moments(*moments),
    )
    return statistics, shard.complete(target_logits, shard.text_counts)


def _all_videos(own: EncodedVideos, shard: Shard) -> EncodedVideos:
    """All processes' videos as if encoded here, for this process's texts.

    Raises:
        ValueError: this kind of videos cannot be exchanged; videos of different sizes, which all
            processes raise.
    """
    shard.require_alike(
        ["frames"],
        "the directional diversity needs frame_features of one shape (…, F, D) in all processes, "
        "padding included",
    )
    parts = own.parts()
    of_videos = {
        name: shard.gather(tensor, shard.video_counts) for name, tensor in parts.of_videos.items()
    }
    videos = type(own).from_parts(parts._replace(of_videos=of_videos))
    return videos.placed(shard.texts.start, 0, own.dropout_seed)


def contrastive_loss(
    similarity: Tensor, logit_scale: Tensor | float, targets: Targets | None, shard: Shard | None
) -> Tensor:
    """:func:`garevla.info_nce`, of a batch that processes may share.

    Args:
        similarity: (A, B), of all processes' texts and the own videos.
        logit_scale: the factor itself.
        targets: (own texts,), among the own videos, as in :func:`garevla.info_nce`.
        shard: this process's part of the batch.
    """
    if shard is None:
        return info_nce(similarity, logit_scale, targets)
    targets = check_targets(targets, shard.own_texts, similarity.shape[1], similarity.device)
    logits = similarity * logit_scale
    rows = shard.complete_by_process(logits.logsumexp(dim=1)).logsumexp(dim=0)
    columns = shard.complete(logits.logsumexp(dim=0), shard.video_counts)
    right = logits[shard.texts].gather(1, targets.unsqueeze(1)).squeeze(1)
    return info_nce_of_logsumexps(
        rows,
        columns,
        shard.complete(right, shard.text_counts),
        shard.gather(targets + shard.videos.start, shard.text_counts),
    )
