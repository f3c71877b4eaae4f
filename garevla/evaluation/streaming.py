"""Exact ranks from tiles of scores, with running counts in place of the (A, B) similarity."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

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
from garevla.head.texts import Texts
from garevla.head.videos import Videos


@torch.no_grad()
def streaming_ranks(
    text_features: Tensor | Texts,
    frame_features: Tensor | Videos,
    score: Score,
    targets: Sequence[int] | np.ndarray | Tensor,
    frame_mask: Tensor | None = None,
    *,
    ties: TieRule = "average",
    text_tile: int = TEXT_TILE,
    video_tile: int = VIDEO_TILE,
    device: torch.device | str | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Exact ranks in both directions without the (A, B) similarity; every pair is scored once.

    The tiles that hold right pairs are scored first and kept, which gives the score each text
    must be compared with; all others are scored, counted and dropped. Texts are sorted by video
    beforehand, so the kept tiles have about A·video_tile + B·text_tile elements together.

    Args:
        targets: (A,) index of each text's video.
        ties: as :func:`garevla.evaluation.metrics.rank_of_targets`.
        Others: as :func:`score_tiles`.

    Returns:
        Text-to-video and video-to-text ranks, float64 from 1: those of
        :func:`~garevla.evaluation.metrics.rank_of_targets` and
        :func:`~garevla.evaluation.metrics.rank_of_caption_sets` for the whole similarity.

    Raises:
        ValueError, TypeError: as :func:`score_tiles` and
            :func:`~garevla.evaluation.metrics.rank_of_targets`.
    """
    target_index = as_targets(targets, len(text_features), len(frame_features), ties=ties)
    order = np.argsort(target_index, kind="stable")
    scorer = TileScorer(
        text_features[torch.from_numpy(order).to(text_features.device)],
        frame_features,
        score,
        frame_mask,
        text_tile,
        video_tile,
        device,
    )
    sorted_targets = torch.from_numpy(target_index[order]).to(scorer.device)
    target_scores, target_tiles = _score_targets(scorer, target_index[order])
    position = np.argsort(order)
    check_target_scores(target_scores[torch.from_numpy(position).to(scorer.device)])
    text_counts, video_counts = _count(scorer, sorted_targets, target_scores, target_tiles)
    of_texts = text_counts.cpu().numpy()[:, position]
    of_videos = video_counts.cpu().numpy()[:, np.unique(target_index)]
    return ranks_from_counts(*of_texts, ties=ties), ranks_from_counts(*of_videos, ties=ties)


_Tiles = dict[tuple[int, int], Tensor]
"""Scores of tiles by their first text and first video."""


def _score_targets(scorer: TileScorer, targets: np.ndarray) -> tuple[Tensor, _Tiles]:
    """Scores (A,) of the right pairs, and the tiles that hold them; targets (A,) in order."""
    target_scores: Tensor | None = None
    target_tiles: _Tiles = {}
    device = scorer.device
    target = torch.from_numpy(targets).to(device)
    for videos in scorer.video_slices:
        first, last = np.searchsorted(targets, [videos.start, videos.stop])
        with_targets = [s for s in scorer.text_slices if s.start < last and s.stop > first]
        for texts, scores in scorer.tiles(with_targets, videos):
            target_tiles[texts.start, videos.start] = scores
            if target_scores is None:
                target_scores = scores.new_empty(len(targets))
            row = torch.arange(max(first, texts.start), min(last, texts.stop), device=device)
            target_scores[row] = scores[row - texts.start, target[row] - videos.start]
    assert target_scores is not None  # there are texts, and each has a video
    return target_scores, target_tiles


def _count(
    scorer: TileScorer, target: Tensor, target_scores: Tensor, target_tiles: _Tiles
) -> tuple[Tensor, Tensor]:
    """Candidates better than the right one, and others tied with it, for each text and video.

    Uses up ``target_tiles``.

    Returns:
        (2, A) and (2, B) int64; of a video without texts the counts mean nothing.
    """
    num_texts, num_videos = len(target), scorer.num_videos
    text_counts = torch.zeros(2, num_texts, dtype=torch.int64, device=scorer.device)
    video_counts = torch.zeros(2, num_videos, dtype=torch.int64, device=scorer.device)
    for videos in scorer.video_slices:
        # Row j: the best score of video j's captions with each video of this column of tiles.
        set_best = target_scores.new_full((num_videos, videos.stop - videos.start), -torch.inf)
        for texts, scores in _scored_or_kept(scorer, target_tiles, videos):
            text_counts[:, texts] += _better_and_tied(scores, target_scores[texts, None], dim=1)
            set_best.scatter_reduce_(0, target[texts, None].expand_as(scores), scores, "amax")
        video_counts[:, videos] = _better_and_tied(set_best, set_best[videos].diagonal(), dim=0)
    # The right candidate ties with itself.
    text_counts[1] -= 1
    video_counts[1] -= 1
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
