"""Exact ranks from tiles of scores, with running counts in place of the (A, B) similarity."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from garevla.evaluation.metrics import (
    TieRule,
    as_targets,
    check_target_scores,
    ranks_from_counts,
)
from garevla.evaluation.tiles import TEXT_TILE, VIDEO_TILE, Score, TileScorer
from garevla.head.videos import Videos

if TYPE_CHECKING:
    from garevla.evaluation.shares import Share


@torch.no_grad()
def streaming_ranks(
    text_features: Tensor,
    frame_features: Tensor | Videos,
    score: Score,
    targets: Sequence[int] | np.ndarray | Tensor,
    frame_mask: Tensor | None = None,
    *,
    ties: TieRule = "average",
    text_tile: int = TEXT_TILE,
    video_tile: int = VIDEO_TILE,
    device: torch.device | str | None = None,
    share: Share | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Exact ranks in both directions without the (A, B) similarity; every pair is scored once.

    The tiles that hold right pairs are scored first and kept, which gives the score each text
    must be compared with; all others are scored, counted and dropped. Texts are sorted by video
    beforehand, so the kept tiles have about A·video_tile + B·text_tile elements together.

    Args:
        targets: (A,) index of each text's video.
        ties: as :func:`garevla.evaluation.metrics.rank_of_targets`.
        share: which of the videos ``frame_features`` has, where each of several processes scores
            all texts against its own; the ranks are of all videos.
        Others: as :func:`score_tiles`.

    Returns:
        Text-to-video and video-to-text ranks, float64 from 1: those of
        :func:`~garevla.evaluation.metrics.rank_of_targets` and
        :func:`~garevla.evaluation.metrics.rank_of_caption_sets` for the whole similarity.

    Raises:
        ValueError, TypeError: as :func:`score_tiles` and
            :func:`~garevla.evaluation.metrics.rank_of_targets`.
    """
    first, num_videos = 0, len(frame_features)
    if share is not None:
        first, num_videos = share.rows.start, sum(share.counts)
    target_index = as_targets(targets, len(text_features), num_videos, ties=ties)
    order = np.argsort(target_index, kind="stable")
    scorer = TileScorer(
        text_features[torch.from_numpy(order).to(text_features.device)],
        frame_features,
        score,
        frame_mask,
        text_tile,
        video_tile,
        device,
        may_lack_videos=share is not None,
    )
    sorted_targets = torch.from_numpy(target_index[order]).to(scorer.device)
    target_scores, target_tiles = _score_targets(scorer, target_index[order] - first)
    if share is not None:
        # Every score fits into float64; a process without videos does not know their type.
        target_scores = share.sum(target_scores.double())
    position = np.argsort(order)
    check_target_scores(target_scores[torch.from_numpy(position).to(scorer.device)])
    text_counts, video_counts = _count(
        scorer, sorted_targets, first, num_videos, target_scores, target_tiles
    )
    if share is not None:
        text_counts, video_counts = share.sum(text_counts), share.join(video_counts.T).T
    # The right candidate ties with itself.
    text_counts[1] -= 1
    video_counts[1] -= 1
    of_texts = text_counts.cpu().numpy()[:, position]
    of_videos = video_counts.cpu().numpy()[:, np.unique(target_index)]
    return ranks_from_counts(*of_texts, ties=ties), ranks_from_counts(*of_videos, ties=ties)


_Tiles = dict[tuple[int, int], Tensor]
"""Scores of tiles by their first text and first video."""


def _score_targets(scorer: TileScorer, targets: np.ndarray) -> tuple[Tensor, _Tiles]:
    """Scores (A,) of the right pairs, and the tiles that hold them; targets (A,) in order. Texts
    whose video is not among the scorer's have 0."""
    device = scorer.device
    target_scores = torch.zeros(len(targets), device=device)
    target_tiles: _Tiles = {}
    target = torch.from_numpy(targets).to(device)
    for videos in scorer.video_slices:
        first, last = np.searchsorted(targets, [videos.start, videos.stop])
        with_targets = [s for s in scorer.text_slices if s.start < last and s.stop > first]
        for texts, scores in scorer.tiles(with_targets, videos):
            target_tiles[texts.start, videos.start] = scores
            target_scores = target_scores.to(scores.dtype)
            row = torch.arange(max(first, texts.start), min(last, texts.stop), device=device)
            target_scores[row] = scores[row - texts.start, target[row] - videos.start]
    return target_scores, target_tiles


def _count(
    scorer: TileScorer,
    target: Tensor,
    first: int,
    num_videos: int,
    target_scores: Tensor,
    target_tiles: _Tiles,
) -> tuple[Tensor, Tensor]:
    """Candidates better than the right one, and others tied with it, for each text and video.

    Uses up ``target_tiles``.

    Args:
        target: (A,) among all ``num_videos``, of which the scorer's begin with number ``first``.

    Returns:
        (2, A) and (2, B) int64, the right candidate itself among the tied; of a video without texts
        the counts mean nothing.
    """
    text_counts = torch.zeros(2, len(target), dtype=torch.int64, device=scorer.device)
    video_counts = torch.zeros(2, scorer.num_videos, dtype=torch.int64, device=scorer.device)
    for videos in scorer.video_slices:
        # Row j: the best score of video j's captions with each video of this column of tiles.
        set_best = torch.empty(0)
        for texts, scores in _scored_or_kept(scorer, target_tiles, videos):
            if not set_best.numel():
                set_best = scores.new_full((num_videos, videos.stop - videos.start), -torch.inf)
            right = target_scores[texts, None].to(scores.dtype)
            text_counts[:, texts] += _better_and_tied(scores, right, dim=1)
            set_best.scatter_reduce_(0, target[texts, None].expand_as(scores), scores, "amax")
        own_best = set_best[first + videos.start : first + videos.stop].diagonal()
        video_counts[:, videos] = _better_and_tied(set_best, own_best, dim=0)
    return text_counts, video_counts


def _better_and_tied(scores: Tensor, reference: Tensor, dim: int) -> Tensor:
    return torch.stack([(scores > reference).sum(dim=dim), (scores == reference).sum(dim=dim)])


def _scored_or_kept(
    scorer: TileScorer, target_tiles: _Tiles, videos: slice
) -> Iterator[tuple[slice, Tensor]]:
    """All tiles of a column: those with right pairs from before, the others scored now."""
    missing = []
    for texts in scorer.text_slices:
        scores = target_tiles.pop((texts.start, videos.start), None)
        if scores is None:
            missing.append(texts)
        else:
            yield texts, scores
    yield from scorer.tiles(missing, videos)
