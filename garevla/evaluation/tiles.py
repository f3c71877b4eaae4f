"""The similarity of all texts and videos, scored a tile at a time.

Nothing here has an element per (text, video, feature), and only :func:`score_matrix` an element
per (text, video).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from garevla.head.texts import Texts
from garevla.head.videos import Videos
from garevla.utils.slices import slices_of

Score = Callable[..., Tensor]
"""``score(text_features (a, D), frame_features (b, F, D), frame_mask (b, F)) -> (a, b)``; of kept
videos, ``score(text_features (a, D), videos) -> (a, b)``. Texts with words come as they are given,
:class:`garevla.Texts`."""

# Texts outnumber videos in a tile because a head's per-video work is done once per tile.
TEXT_TILE = 1024
VIDEO_TILE = 256


class TileScorer:
    """Scores rectangles of the (A, B) similarity; features may lie on another device."""

    def __init__(
        self,
        text_features: Tensor | Texts,
        frame_features: Tensor | Videos,
        score: Score,
        frame_mask: Tensor | None,
        text_tile: int,
        video_tile: int,
        device: torch.device | str | None,
        *,
        may_lack_videos: bool = False,
    ) -> None:
        if isinstance(frame_features, Videos):
            self.candidates: tuple[Videos] | tuple[Tensor, Tensor] = (frame_features,)
            if frame_mask is not None:
                raise TypeError("frame_mask is for frame_features; kept videos have their own")
        else:
            self.candidates = (
                frame_features,
                _checked_mask(frame_features, frame_mask, 0 if may_lack_videos else 1),
            )
        for name, size in (("text_tile", text_tile), ("video_tile", video_tile)):
            if size < 1:
                raise ValueError(f"{name} must be >= 1, got {size}")
        self.device = torch.device(device) if device is not None else text_features.device
        self.text_tile = text_tile
        self._set_texts(text_features)
        self.num_videos = len(frame_features)
        self.score = score
        self.video_slices = slices_of(len(frame_features), video_tile)

    def _set_texts(self, text_features: Tensor | Texts) -> None:
        if isinstance(text_features, Texts):
            # One of these has as much memory as otherwise a video.
            shape, tile = text_features.text_features.shape, min(self.text_tile, VIDEO_TILE)
        else:
            shape, tile = text_features.shape, self.text_tile
        if len(shape) != 2 or shape[0] == 0:
            raise ValueError(
                f"text_features must have shape (A, D) with A >= 1, got {tuple(shape)}"
            )
        self.text_features = text_features.to(self.device)
        self.num_texts = len(text_features)
        self.text_slices = slices_of(len(text_features), tile)

    def for_texts(self, text_features: Tensor | Texts) -> TileScorer:
        """A scorer of other texts (M, D) against the same videos."""
        other = copy.copy(self)
        other._set_texts(text_features)
        return other

    def all_tiles(self) -> Iterator[tuple[slice, slice, Tensor]]:
        """Yield (texts, videos, scores (a, b)): all texts of the first tile of videos, then of the
        next."""
        for videos in self.video_slices:
            for texts, scores in self.tiles(self.text_slices, videos):
                yield texts, videos, scores

    def tiles(self, texts: Iterable[slice], videos: slice) -> Iterator[tuple[slice, Tensor]]:
        """Yield (texts, scores (a, b)) for some tiles of one column of tiles."""
        column: list[Tensor | Videos] | None = None
        for text in texts:
            if column is None:
                column = [part[videos].to(self.device) for part in self.candidates]
            scores = self.score(self.text_features[text], *column)
            expected = (text.stop - text.start, videos.stop - videos.start)
            if tuple(scores.shape) != expected:
                raise ValueError(f"score must return shape {expected}, got {tuple(scores.shape)}")
            invalid = torch.isnan(scores).nonzero()
            if len(invalid):
                row, video = invalid[0].tolist()
                raise ValueError(
                    f"score is NaN for text {text.start + row}, video {videos.start + video}"
                )
            yield text, scores


def _checked_mask(frame_features: Tensor, frame_mask: Tensor | None, least_videos: int) -> Tensor:
    if frame_features.dim() != 3 or len(frame_features) < least_videos:
        raise ValueError(
            "frame_features must have shape (B, F, D) with B >= 1, "
            f"got {tuple(frame_features.shape)}"
        )
    shape = frame_features.shape[:2]
    if frame_mask is None:
        return torch.ones(shape, dtype=torch.bool, device=frame_features.device)
    if frame_mask.shape != shape:
        raise ValueError(
            f"frame_mask must have shape (B, F) = {tuple(shape)}, got {tuple(frame_mask.shape)}"
        )
    return frame_mask


@torch.no_grad()
def score_tiles(
    text_features: Tensor | Texts,
    frame_features: Tensor | Videos,
    score: Score,
    frame_mask: Tensor | None = None,
    *,
    text_tile: int = TEXT_TILE,
    video_tile: int = VIDEO_TILE,
    device: torch.device | str | None = None,
) -> Iterator[tuple[slice, slice, Tensor]]:
    """Score all texts against all videos, a tile at a time, without gradients.

    Args:
        text_features: (A, D), or :class:`garevla.Texts`.
        frame_features: (B, F, D), or :class:`garevla.Videos`, which know their mask.
        score: ``score(text_features (a, D), frame_features (b, F, D), frame_mask (b, F))``, of kept
            videos ``score(text_features (a, D), videos)``, which returns (a, b).
        frame_mask: (B, F) bool, true for valid frames; all true by default.
        text_tile, video_tile: largest number of texts and videos scored at once.
        device: where tiles are scored; by default where ``text_features`` lies. Frame features
            are moved there a tile at a time.

    Yields:
        ``(texts, videos, scores)``: two slices and the (a, b) scores on ``device``; all texts of
        the first tile of videos, then of the next.

    Raises:
        ValueError: empty or wrongly shaped arguments, tile sizes below 1, a score of the wrong
            shape or NaN.
    """
    scorer = TileScorer(
        text_features, frame_features, score, frame_mask, text_tile, video_tile, device
    )
    yield from scorer.all_tiles()


@torch.no_grad()
def score_matrix(
    text_features: Tensor | Texts,
    frame_features: Tensor | Videos,
    score: Score,
    frame_mask: Tensor | None = None,
    *,
    text_tile: int = TEXT_TILE,
    video_tile: int = VIDEO_TILE,
    device: torch.device | str | None = None,
) -> Tensor:
    """Assemble the whole (A, B) similarity on the CPU; arguments as :func:`score_tiles`."""
    matrix: Tensor | None = None
    for texts, videos, scores in score_tiles(
        text_features,
        frame_features,
        score,
        frame_mask,
        text_tile=text_tile,
        video_tile=video_tile,
        device=device,
    ):
        if matrix is None:
            matrix = torch.empty(len(text_features), len(frame_features), dtype=scores.dtype)
        matrix[texts, videos] = scores.cpu()
    assert matrix is not None  # neither side is empty
    return matrix


@torch.no_grad()
def top_k(
    text_features: Tensor | Texts,
    frame_features: Tensor | Videos,
    score: Score,
    frame_mask: Tensor | None = None,
    *,
    k: int,
    text_tile: int = TEXT_TILE,
    video_tile: int = VIDEO_TILE,
    device: torch.device | str | None = None,
) -> tuple[Tensor, Tensor]:
    """Find each text's k best videos in a stream; of equal scores the lower index comes first.

    Args:
        k: 1..B; a larger k is an error, not clamped.
        Others: as :func:`score_tiles`.

    Returns:
        Scores (A, k), best first, and video indices (A, k) int64, on the CPU.

    Raises:
        ValueError: k out of range, or as :func:`score_tiles`.
    """
    if not 1 <= k <= len(frame_features):
        raise ValueError(f"k must be in 1..B = 1..{len(frame_features)}, got {k}")
    best: dict[int, tuple[Tensor, Tensor]] = {}
    for texts, videos, scores in score_tiles(
        text_features,
        frame_features,
        score,
        frame_mask,
        text_tile=text_tile,
        video_tile=video_tile,
        device=device,
    ):
        indices = torch.arange(videos.start, videos.stop, device=scores.device).expand_as(scores)
        if texts.start in best:
            best_scores, best_indices = best[texts.start]
            scores = torch.cat([best_scores, scores], dim=1)
            indices = torch.cat([best_indices, indices], dim=1)
        # A stable sort keeps earlier, lower-numbered videos ahead of equal later ones.
        scores, order = scores.sort(dim=1, descending=True, stable=True)
        best[texts.start] = scores[:, :k], indices.gather(1, order[:, :k])
    all_scores, all_indices = zip(*best.values(), strict=True)
    return torch.cat(all_scores).cpu(), torch.cat(all_indices).cpu()
