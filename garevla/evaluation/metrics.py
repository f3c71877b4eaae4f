"""Ranks of the right answers, and the retrieval figures made from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

TieRule = Literal["average", "compat"]


@dataclass(frozen=True)
class RetrievalMetrics:
    """Figures of one retrieval direction.

    Attributes:
        recall_at_1, recall_at_5, recall_at_10: per cent of the ranks that are at most 1, 5, 10.
        median_rank, mean_rank: ranks count from 1.
        num_queries: number of ranks the figures come from. Under the ``"compat"`` tie rule this
            is the published code's denominator, larger than the number of queries where there
            are ties.
    """

    recall_at_1: float
    recall_at_5: float
    recall_at_10: float
    median_rank: float
    mean_rank: float
    num_queries: int

    @classmethod
    def from_ranks(cls, ranks: np.ndarray) -> RetrievalMetrics:
        """Make the figures from ranks (N,) that count from 1.

        Raises:
            ValueError: no ranks, or one that is not a finite number >= 1.
        """
        ranks = np.asarray(ranks, dtype=np.float64)
        if ranks.ndim != 1 or ranks.size == 0:
            raise ValueError(f"ranks must have shape (N,) with N >= 1, got {ranks.shape}")
        if not np.all(np.isfinite(ranks) & (ranks >= 1)):
            raise ValueError("ranks must be finite numbers >= 1")
        recall = {k: float(np.sum(ranks <= k)) * 100 / ranks.size for k in (1, 5, 10)}
        return cls(
            recall_at_1=recall[1],
            recall_at_5=recall[5],
            recall_at_10=recall[10],
            median_rank=float(np.median(ranks)),
            # Averaged from 0 and then shifted: the published figures round in this order.
            mean_rank=float(np.mean(ranks - 1)) + 1,
            num_queries=ranks.size,
        )

    def as_dict(self) -> dict[str, float | int]:
        """Return the figures by name, ready for JSON."""
        return asdict(self)


def rank_of_targets(
    similarity: Tensor | np.ndarray,
    targets: Sequence[int] | np.ndarray | Tensor,
    *,
    ties: TieRule = "average",
) -> np.ndarray:
    """Rank each query's right candidate among all candidates: text to video.

    Args:
        similarity: (A, B) scores of A queries against B candidates, larger is better; compared in
            the precision they are given in.
        targets: (A,) index of each query's right candidate. Several captions of one video are
            several queries with the same target.
        ties: ``"average"``: rank = 1 + number of candidates strictly better + half the number of
            other candidates with the same score. ``"compat"``: the ranks the published GARE and
            CLIP4Clip code counts, one for *every* candidate that has the target's score, so that
            a query with ties enters several times.

    Returns:
        float64 ranks that count from 1: (A,) in the order of the queries, or at least A of them
        under ``"compat"``.

    Raises:
        ValueError: empty or wrongly shaped arguments, a target out of range, NaN anywhere, an
            infinite score of a right candidate, or ``"compat"`` with several captions per video,
            which the published code does not evaluate.
        TypeError: targets that are not integers.
    """
    scores = _as_scores(similarity)
    num_queries, num_candidates = scores.shape
    target_index = as_targets(targets, num_queries, num_candidates, ties=ties)
    index = torch.from_numpy(target_index).to(scores.device)
    target_scores = scores.gather(1, index[:, None])
    check_target_scores(target_scores)
    better = (scores > target_scores).sum(dim=1)
    tied = (scores == target_scores).sum(dim=1) - 1
    return ranks_from_counts(better.cpu().numpy(), tied.cpu().numpy(), ties=ties)


def rank_of_caption_sets(
    similarity: Tensor | np.ndarray,
    targets: Sequence[int] | np.ndarray | Tensor,
    *,
    ties: TieRule = "average",
) -> np.ndarray:
    """Rank each video's own captions among all videos' captions: video to text.

    A video's captions stand as one candidate, scored by the best of them, as in CLIP4Clip's
    evaluation of several captions per video. With one caption per video this is the rank of that
    caption. Videos without a caption have no right answer and are no queries.

    Args:
        similarity: (A, B) scores of A captions against B videos (*not* transposed).
        targets: (A,) index of each caption's video.
        ties: as in :func:`rank_of_targets`.

    Returns:
        float64 ranks that count from 1, one for each video that has a caption, in the order of
        the videos (more under ``"compat"`` where there are ties).

    Raises:
        ValueError, TypeError: as :func:`rank_of_targets`.
    """
    scores = _as_scores(similarity)
    num_texts, num_videos = scores.shape
    target_index = as_targets(targets, num_texts, num_videos, ties=ties)
    captioned, set_index = np.unique(target_index, return_inverse=True)
    index = torch.from_numpy(set_index).to(scores.device)
    best = scores.new_full((len(captioned), num_videos), -torch.inf)
    best.scatter_reduce_(0, index[:, None].expand_as(scores), scores, "amax")
    best = best[:, torch.from_numpy(captioned).to(scores.device)]
    return rank_of_targets(best.T, np.arange(len(captioned)), ties=ties)


def rank_of_sentences(
    similarity: Tensor | np.ndarray,
    targets: Sequence[int] | np.ndarray | Tensor,
    *,
    ties: TieRule = "average",
) -> np.ndarray:
    """Rank each video's best caption among all single captions: video to text.

    Competitors are the captions of other videos, each for itself; a video's own other captions are
    none. With one caption per video this is :func:`rank_of_caption_sets`, else ranks are never
    better than there.

    Args, Returns, Raises: as :func:`rank_of_caption_sets`.
    """
    scores = _as_scores(similarity)
    target_index = as_targets(targets, *scores.shape, ties=ties)
    index = torch.from_numpy(target_index).to(scores.device)
    own = index[:, None] == torch.arange(scores.shape[1], device=scores.device)
    best = scores.masked_fill(~own, -torch.inf).amax(dim=0)
    captioned = np.unique(target_index)
    check_target_scores(best[torch.from_numpy(captioned).to(scores.device)])
    better = ((scores > best) & ~own).sum(dim=0).cpu().numpy()
    tied = ((scores == best) & ~own).sum(dim=0).cpu().numpy()
    return ranks_from_counts(better[captioned], tied[captioned], ties=ties)


def ranks_from_counts(
    num_better: np.ndarray, num_tied: np.ndarray, *, ties: TieRule = "average"
) -> np.ndarray:
    """Turn counts into ranks by a tie rule of :func:`rank_of_targets`.

    Args:
        num_better: (N,) int64, candidates strictly better than the right one.
        num_tied: (N,) int64, *other* candidates with the right one's score.
        ties: the rule.

    Returns:
        float64 ranks from 1: (N,), or ``sum(num_tied + 1)`` of them under ``"compat"``.
    """
    _check_tie_rule(ties)
    if ties == "average":
        return 1.0 + num_better + 0.5 * num_tied
    # The target and its ties hold the places num_better, num_better + 1, ... of the sorted row.
    places = num_tied + 1
    first_entry = np.cumsum(places) - places
    offset = np.arange(places.sum()) - np.repeat(first_entry, places)
    return 1.0 + np.repeat(num_better, places) + offset


def as_targets(
    targets: Sequence[int] | np.ndarray | Tensor, num_texts: int, num_videos: int, *, ties: TieRule
) -> np.ndarray:
    """Check targets against A texts, B videos and the tie rule; return them as int64 (A,).

    Raises:
        TypeError, ValueError: as :func:`rank_of_targets`.
    """
    _check_tie_rule(ties)
    array = targets.cpu().numpy() if isinstance(targets, Tensor) else np.asarray(targets)
    if array.shape != (num_texts,):
        raise ValueError(f"targets must have shape (A,) = ({num_texts},), got {array.shape}")
    if not np.issubdtype(array.dtype, np.integer):
        raise TypeError(f"targets must be integers, got {array.dtype}")
    wrong = np.flatnonzero((array < 0) | (array >= num_videos))
    if wrong.size:
        raise ValueError(
            f"targets must be in 0..{num_videos - 1} (B = {num_videos} videos), "
            f"got {array[wrong[0]]} for text {wrong[0]}"
        )
    if ties == "compat" and len(np.unique(array)) != num_texts:
        raise ValueError(
            "ties='compat' needs one caption per video: the published code evaluates the "
            "diagonal of one square matrix; use ties='average' for several captions per video"
        )
    return array.astype(np.int64)


def check_target_scores(target_scores: Tensor) -> None:
    """Raise ValueError where a right candidate's score is infinite: it has no meaningful rank."""
    infinite = torch.isinf(target_scores).flatten().nonzero()
    if len(infinite):
        raise ValueError(f"similarity of query {int(infinite[0])} to its own target is infinite")


def _as_scores(similarity: Tensor | np.ndarray) -> Tensor:
    if isinstance(similarity, np.ndarray):
        similarity = torch.from_numpy(np.array(similarity, order="C"))
    scores = similarity.detach()
    if scores.dim() != 2 or scores.numel() == 0:
        raise ValueError(
            f"similarity must have shape (A, B) with A, B >= 1, got {tuple(scores.shape)}"
        )
    if not scores.is_floating_point():
        raise TypeError(f"similarity must be floating-point, got {scores.dtype}")
    invalid = torch.isnan(scores).nonzero()
    if len(invalid):
        text, video = invalid[0].tolist()
        raise ValueError(f"similarity is NaN for {len(invalid)} pair(s), first [{text}, {video}]")
    return scores


def _check_tie_rule(ties: str) -> None:
    if ties not in get_args(TieRule):
        raise ValueError(f"ties must be one of {get_args(TieRule)}, got {ties!r}")
