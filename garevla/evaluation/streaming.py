"""Exact ranks from tiles of scores, with running counts in place of the (A, B) similarity."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from garevla.evaluation.metrics import (
    TieRule,
    as_targets,
    check_target_scores,
    ranks_from_counts,
)
from garevla.evaluation.post_processing import DerivedScores, PostProcessing
from garevla.evaluation.tiles import TEXT_TILE, VIDEO_TILE, Score, TileScorer
from garevla.head.texts import Texts
from garevla.head.videos import Videos

if TYPE_CHECKING:
    from garevla.evaluation.shares import Share

VideoToText = Literal["caption_sets", "sentences"]


@dataclass(frozen=True)
class RankCounts:
    """What the ranks of N queries are made of.

    Attributes:
        better: (N,) int64, wrong candidates with a score above that of the best right one.
        tied: (N,) int64, wrong candidates with the same score.
    """

    better: np.ndarray
    tied: np.ndarray

    def ranks(self, ties: TieRule = "average") -> np.ndarray:
        """Ranks from 1, by :func:`garevla.evaluation.metrics.ranks_from_counts`."""
        return ranks_from_counts(self.better, self.tied, ties=ties)


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
    share: Share | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Exact ranks in both directions without the (A, B) similarity; every pair is scored once.

    Args:
        targets: (A,) index of each text's video.
        ties: as :func:`garevla.evaluation.metrics.rank_of_targets`.
        share: as :func:`streaming_counts`.
        Others: as :func:`score_tiles`.

    Returns:
        Text-to-video and video-to-text ranks, float64 from 1: those of
        :func:`~garevla.evaluation.metrics.rank_of_targets` and
        :func:`~garevla.evaluation.metrics.rank_of_caption_sets` for the whole similarity.

    Raises:
        ValueError, TypeError: as :func:`score_tiles` and
            :func:`~garevla.evaluation.metrics.rank_of_targets`.
    """
    of_texts, of_videos = streaming_counts(
        text_features,
        frame_features,
        score,
        as_targets(targets, len(text_features), _num_videos(frame_features, share), ties=ties),
        frame_mask,
        text_tile=text_tile,
        video_tile=video_tile,
        device=device,
        share=share,
    )
    assert of_videos is not None  # plain scores rank texts, too
    return of_texts.ranks(ties), of_videos.ranks(ties)


@torch.no_grad()
def streaming_counts(
    text_features: Tensor | Texts,
    frame_features: Tensor | Videos,
    score: Score,
    targets: Sequence[int] | np.ndarray | Tensor,
    frame_mask: Tensor | None = None,
    *,
    video_to_text: VideoToText = "caption_sets",
    groups: np.ndarray | None = None,
    post_processing: PostProcessing | None = None,
    text_tile: int = TEXT_TILE,
    video_tile: int = VIDEO_TILE,
    device: torch.device | str | None = None,
    share: Share | None = None,
) -> tuple[RankCounts, RankCounts | None]:
    """What the ranks in both directions are made of, under any protocol.

    The tiles that hold right pairs are scored first and kept, which gives the score each query's
    candidates must be compared with; all others are scored, counted and dropped. Texts are sorted
    by video beforehand, so the kept tiles have about A·video_tile + B·text_tile elements together,
    more only where near-duplicates lie apart.

    Args:
        targets: (A,) index of each text's video.
        video_to_text: a video's candidates. ``"caption_sets"``: the captions of each video stand
            as one, scored by the best of them; ``"sentences"``: each caption is one, and the
            video's rank is that of its own best.
        groups: (B,) int64; videos of one number are near-duplicates, right for each other's
            captions. The best right candidate is ranked among the wrong ones.
        post_processing: what the scores become before they are compared, at the cost of another
            pass over all tiles; not with a share.
        share: which of the videos ``frame_features`` has, where each of several processes scores
            all texts against its own; the counts are of all videos.
        Others: as :func:`score_tiles`.

    Returns:
        Counts of the A texts and of the videos that have captions, in the order of the videos;
        None for the latter where the post-processing does not rank texts.

    Raises:
        ValueError, TypeError: as :func:`score_tiles` and
            :func:`~garevla.evaluation.metrics.rank_of_targets`; an unknown ``video_to_text``,
            groups of the wrong shape, post-processing of a share, or of scores that it cannot take.
    """
    num_videos = _num_videos(frame_features, share)
    target_index = as_targets(targets, len(text_features), num_videos, ties="average")
    if video_to_text not in get_args(VideoToText):
        raise ValueError(
            f"video_to_text must be one of {get_args(VideoToText)}, got {video_to_text!r}"
        )
    groups = np.arange(num_videos) if groups is None else groups
    if groups.shape != (num_videos,):
        raise ValueError(f"groups must have shape (B,) = ({num_videos},), got {groups.shape}")
    if share is not None and post_processing is not None:
        raise ValueError("post-processing needs all videos in one process")
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
    first_video = 0 if share is None else share.rows.start
    ranking = _Ranking(
        scorer, target_index[order], groups, first_video, video_to_text, post_processing
    )
    text_reference, video_reference, kept = ranking.score_right_pairs()
    if share is not None:
        # Every score fits into float64; a process without videos does not know their type.
        text_reference = share.maximum(text_reference.double())
    position = np.argsort(order)
    check_target_scores(text_reference[torch.from_numpy(position).to(scorer.device)])
    of_texts, of_videos = ranking.count(text_reference, video_reference, kept)
    if share is not None:
        of_texts, of_videos = share.sum(of_texts), share.join(of_videos.T).T
    text_counts = RankCounts(*of_texts.cpu().numpy()[:, position])
    if not ranking.ranks_texts:
        return text_counts, None
    return text_counts, RankCounts(*of_videos.cpu().numpy()[:, np.unique(target_index)])


def _num_videos(frame_features: Tensor | Videos, share: Share | None) -> int:
    return len(frame_features) if share is None else sum(share.counts)


_Tiles = dict[tuple[int, int], Tensor]
"""Scores of tiles by their first text and first video."""


class _Plain:
    """Scores as they are; a :class:`DerivedScores`."""

    def text_to_video(self, scores: Tensor, texts: slice, videos: slice) -> Tensor:
        return scores

    video_to_text = text_to_video

    def rounding(self, reference: Tensor) -> float:
        return 0.0


class _Ranking:
    """Goes twice over the tiles of sorted texts: for the right pairs, and to count the others.

    Args:
        scorer: of texts sorted by video.
        targets: (A,) each text's video, in order.
        groups, video_to_text, post_processing: as :func:`streaming_counts`.
        first_video: number of the scorer's first among all videos.
    """

    def __init__(
        self,
        scorer: TileScorer,
        targets: np.ndarray,
        groups: np.ndarray,
        first_video: int,
        video_to_text: VideoToText,
        post_processing: PostProcessing | None,
    ) -> None:
        self.scorer = scorer
        own = slice(first_video, first_video + scorer.num_videos)
        self.text_groups, self.video_groups = groups[targets], groups[own]
        self.targets = torch.from_numpy(targets).to(scorer.device)
        self.groups = torch.from_numpy(groups).to(scorer.device)
        self.own_groups = self.groups[own]
        self.sentences = video_to_text == "sentences"
        self.ranks_texts = post_processing is None or post_processing.ranks_texts
        self.derived: DerivedScores = (
            _Plain() if post_processing is None else post_processing.derive(scorer)
        )

    def score_right_pairs(self) -> tuple[Tensor, Tensor, _Tiles]:
        """Best right scores of each text (A,) and video (B,), and the tiles that hold them."""
        scorer = self.scorer
        of_texts, of_videos = (
            torch.full((size,), -torch.inf, device=scorer.device)
            for size in (scorer.num_texts, scorer.num_videos)
        )
        kept: _Tiles = {}
        for videos in scorer.video_slices:
            with_right = [texts for texts in scorer.text_slices if self._has_right(texts, videos)]
            for texts, scores in scorer.tiles(with_right, videos):
                kept[texts.start, videos.start] = scores
                wrong = ~self._right(texts, videos)
                ranked = self.derived.text_to_video(scores, texts, videos)
                best = ranked.masked_fill(wrong, -torch.inf).amax(dim=1)
                of_texts = of_texts.to(best.dtype)
                of_texts[texts] = of_texts[texts].maximum(best)
                if self.ranks_texts:
                    ranked = self.derived.video_to_text(scores, texts, videos)
                    best = ranked.masked_fill(wrong, -torch.inf).amax(dim=0)
                    of_videos = of_videos.to(best.dtype)
                    of_videos[videos] = of_videos[videos].maximum(best)
        return of_texts, of_videos, kept

    def count(
        self, text_reference: Tensor, video_reference: Tensor, kept: _Tiles
    ) -> tuple[Tensor, Tensor]:
        """Wrong candidates better than the best right one, and tied with it.

        Uses up ``kept``.

        Returns:
            (2, A) and (2, B) int64; of a video without texts the counts mean nothing.
        """
        scorer = self.scorer
        of_texts = torch.zeros(2, scorer.num_texts, dtype=torch.int64, device=scorer.device)
        of_videos = torch.zeros(2, scorer.num_videos, dtype=torch.int64, device=scorer.device)
        for videos in scorer.video_slices:
            references = video_reference[videos]
            # Row j: the best score of video j's captions with each video of this column of tiles.
            best_of_sets = video_reference.new_full((len(self.groups), len(references)), -torch.inf)
            for texts, scores in _scored_or_kept(scorer, kept, videos):
                ranked = self.derived.text_to_video(scores, texts, videos)
                wrong = self._wrong(ranked, texts, videos)
                of_texts[:, texts] += self._better_and_tied(wrong, text_reference[texts, None], 1)
                if not self.ranks_texts:
                    continue
                ranked = self.derived.video_to_text(scores, texts, videos)
                if self.sentences:
                    wrong = self._wrong(ranked, texts, videos)
                    of_videos[:, videos] += self._better_and_tied(wrong, references, 0)
                else:
                    sets = self.targets[texts, None].expand_as(ranked)
                    best_of_sets.scatter_reduce_(0, sets, ranked, "amax")
            if self.ranks_texts and not self.sentences:
                right = self.groups[:, None] == self.own_groups[videos]
                wrong = best_of_sets.masked_fill(right, -torch.inf)
                of_videos[:, videos] = self._better_and_tied(wrong, references, 0)
        return of_texts, of_videos

    def _has_right(self, texts: slice, videos: slice) -> bool:
        return bool(np.isin(self.video_groups[videos], self.text_groups[texts]).any())

    def _right(self, texts: slice, videos: slice) -> Tensor:
        """Which pairs of a tile are right (a, b)."""
        return self.groups[self.targets[texts], None] == self.own_groups[videos]

    def _wrong(self, ranked: Tensor, texts: slice, videos: slice) -> Tensor:
        """A tile's scores (a, b) without those of right pairs, which count nowhere."""
        if not self._has_right(texts, videos):
            return ranked
        return ranked.masked_fill(self._right(texts, videos), -torch.inf)

    def _better_and_tied(self, scores: Tensor, reference: Tensor, dim: int) -> Tensor:
        reference = reference.to(scores.dtype)
        rounding = self.derived.rounding(reference)
        better = (scores > reference + rounding).sum(dim=dim)
        return torch.stack([better, (scores >= reference - rounding).sum(dim=dim) - better])


def _scored_or_kept(
    scorer: TileScorer, kept: _Tiles, videos: slice
) -> Iterator[tuple[slice, Tensor]]:
    """All tiles of a column: those with right pairs from before, the others scored now."""
    missing = []
    for texts in scorer.text_slices:
        scores = kept.pop((texts.start, videos.start), None)
        if scores is None:
            missing.append(texts)
        else:
            yield texts, scores
    yield from scorer.tiles(missing, videos)
