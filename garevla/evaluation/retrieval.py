"""Exact retrieval over a whole test set, scored in tiles.

Nothing here has an element per (text, video, feature), and only :func:`score_matrix` an element
per (text, video): the rest keeps running counts.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from garevla.evaluation.metrics import (
    RetrievalMetrics,
    TieRule,
    as_targets,
    check_own_scores,
    ranks_from_counts,
)

if TYPE_CHECKING:
    from garevla.data.msrvtt import Caption

Score = Callable[[Tensor, Tensor, Tensor], Tensor]
"""``score(text_features (a, D), frame_features (b, F, D), frame_mask (b, F)) -> (a, b)``."""

# Texts outnumber videos in a tile because a head's per-video work is done once per tile.
TEXT_TILE = 1024
VIDEO_TILE = 256


class SupportsRetrieval(Protocol):
    """What :func:`evaluate` needs of a model."""

    def tokenize(self, texts: list[str]) -> Tensor:
        """Return tokens (A, L)."""

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Return text features (A, D)."""

    def encode_video(self, video: Tensor, frame_mask: Tensor) -> Tensor:
        """Return frame features (B, F, D)."""

    def similarity(
        self, text_features: Tensor, frame_features: Tensor, frame_mask: Tensor
    ) -> Tensor:
        """Return scores (A, B)."""


@dataclass(frozen=True)
class EncodedSplit:
    """Features of every caption and every video of a split, each encoded once.

    Attributes:
        text_features: (A, D).
        frame_features: (B, F, D).
        frame_mask: (B, F) bool.
        targets: (A,) int64, each caption's video.
        video_ids: B ids, in the order of the videos.
    """

    text_features: Tensor
    frame_features: Tensor
    frame_mask: Tensor
    targets: np.ndarray
    video_ids: tuple[str, ...]


class _TileScorer:
    """Scores rectangles of the (A, B) similarity; features may lie on another device."""

    def __init__(
        self,
        text_features: Tensor,
        frame_features: Tensor,
        score: Score,
        frame_mask: Tensor | None,
        text_tile: int,
        video_tile: int,
        device: torch.device | str | None,
    ) -> None:
        if text_features.dim() != 2 or len(text_features) == 0:
            raise ValueError(
                "text_features must have shape (A, D) with A >= 1, "
                f"got {tuple(text_features.shape)}"
            )
        if frame_features.dim() != 3 or len(frame_features) == 0:
            raise ValueError(
                "frame_features must have shape (B, F, D) with B >= 1, "
                f"got {tuple(frame_features.shape)}"
            )
        if frame_mask is None:
            frame_mask = torch.ones(
                frame_features.shape[:2], dtype=torch.bool, device=frame_features.device
            )
        if frame_mask.shape != frame_features.shape[:2]:
            raise ValueError(
                f"frame_mask must have shape (B, F) = {tuple(frame_features.shape[:2])}, "
                f"got {tuple(frame_mask.shape)}"
            )
        for name, size in (("text_tile", text_tile), ("video_tile", video_tile)):
            if size < 1:
                raise ValueError(f"{name} must be >= 1, got {size}")
        self.device = torch.device(device) if device is not None else text_features.device
        self.text_features = text_features.to(self.device)
        self.frame_features = frame_features
        self.frame_mask = frame_mask
        self.score = score
        self.text_slices = _slices(len(text_features), text_tile)
        self.video_slices = _slices(len(frame_features), video_tile)

    def tiles(self, texts: Iterable[slice], videos: slice) -> Iterator[tuple[slice, Tensor]]:
        """Yield (texts, scores (a, b)) for some tiles of one column of tiles."""
        frames = mask = None
        for text in texts:
            if frames is None:
                frames = self.frame_features[videos].to(self.device)
                mask = self.frame_mask[videos].to(self.device)
            tile = self.score(self.text_features[text], frames, mask)
            expected = (text.stop - text.start, videos.stop - videos.start)
            if tuple(tile.shape) != expected:
                raise ValueError(f"score must return shape {expected}, got {tuple(tile.shape)}")
            invalid = torch.isnan(tile).nonzero()
            if len(invalid):
                row, column = invalid[0].tolist()
                raise ValueError(
                    f"score is NaN for text {text.start + row}, video {videos.start + column}"
                )
            yield text, tile


@torch.no_grad()
def score_tiles(
    text_features: Tensor,
    frame_features: Tensor,
    score: Score,
    frame_mask: Tensor | None = None,
    *,
    text_tile: int = TEXT_TILE,
    video_tile: int = VIDEO_TILE,
    device: torch.device | str | None = None,
) -> Iterator[tuple[slice, slice, Tensor]]:
    """Score all texts against all videos, a tile at a time, without gradients.

    Args:
        text_features: (A, D).
        frame_features: (B, F, D).
        score: ``score(text_features (a, D), frame_features (b, F, D), frame_mask (b, F))``, which
            returns (a, b).
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
    scorer = _TileScorer(
        text_features, frame_features, score, frame_mask, text_tile, video_tile, device
    )
    for videos in scorer.video_slices:
        for texts, tile in scorer.tiles(scorer.text_slices, videos):
            yield texts, videos, tile


@torch.no_grad()
def score_matrix(
    text_features: Tensor,
    frame_features: Tensor,
    score: Score,
    frame_mask: Tensor | None = None,
    *,
    text_tile: int = TEXT_TILE,
    video_tile: int = VIDEO_TILE,
    device: torch.device | str | None = None,
) -> Tensor:
    """Assemble the whole (A, B) similarity on the CPU; arguments as :func:`score_tiles`."""
    matrix: Tensor | None = None
    for texts, videos, tile in score_tiles(
        text_features,
        frame_features,
        score,
        frame_mask,
        text_tile=text_tile,
        video_tile=video_tile,
        device=device,
    ):
        if matrix is None:
            matrix = torch.empty(len(text_features), len(frame_features), dtype=tile.dtype)
        matrix[texts, videos] = tile.cpu()
    return matrix


@torch.no_grad()
def streaming_ranks(
    text_features: Tensor,
    frame_features: Tensor,
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
    num_texts, num_videos = len(text_features), len(frame_features)
    target_index = as_targets(targets, num_texts, num_videos, ties=ties)
    order = np.argsort(target_index, kind="stable")
    sorted_targets = target_index[order]
    scorer = _TileScorer(
        text_features[torch.from_numpy(order).to(text_features.device)],
        frame_features,
        score,
        frame_mask,
        text_tile,
        video_tile,
        device,
    )
    device = scorer.device
    target = torch.from_numpy(sorted_targets).to(device)

    own: Tensor | None = None
    kept: dict[tuple[int, int], Tensor] = {}
    for videos in scorer.video_slices:
        first, last = np.searchsorted(sorted_targets, [videos.start, videos.stop])
        with_targets = [s for s in scorer.text_slices if s.start < last and s.stop > first]
        for texts, tile in scorer.tiles(with_targets, videos):
            kept[texts.start, videos.start] = tile
            if own is None:
                own = tile.new_empty(num_texts)
            row = torch.arange(max(first, texts.start), min(last, texts.stop), device=device)
            own[row] = tile[row - texts.start, target[row] - videos.start]
    check_own_scores(own[torch.from_numpy(np.argsort(order)).to(device)])

    better, tied = torch.zeros(2, num_texts, dtype=torch.int64, device=device)
    video_better, video_tied = torch.zeros(2, num_videos, dtype=torch.int64, device=device)
    for videos in scorer.video_slices:
        width = videos.stop - videos.start
        # Row j: the best score of video j's captions with each video of this tile.
        set_best = own.new_full((num_videos, width), -torch.inf)
        for texts, tile in _kept_or_scored(scorer, kept, videos):
            better[texts] += (tile > own[texts, None]).sum(dim=1)
            tied[texts] += (tile == own[texts, None]).sum(dim=1)
            set_best.scatter_reduce_(0, target[texts, None].expand_as(tile), tile, "amax")
        own_best = set_best[videos].diagonal()
        video_better[videos] = (set_best > own_best).sum(dim=0)
        video_tied[videos] = (set_best == own_best).sum(dim=0)

    text_counts = torch.stack([better, tied - 1]).cpu().numpy()
    text_counts = text_counts[:, np.argsort(order)]
    video_counts = torch.stack([video_better, video_tied - 1]).cpu().numpy()
    video_counts = video_counts[:, np.unique(target_index)]
    return ranks_from_counts(*text_counts, ties=ties), ranks_from_counts(*video_counts, ties=ties)


def _kept_or_scored(
    scorer: _TileScorer, kept: dict[tuple[int, int], Tensor], videos: slice
) -> Iterator[tuple[slice, Tensor]]:
    missing = []
    for texts in scorer.text_slices:
        tile = kept.pop((texts.start, videos.start), None)
        if tile is None:
            missing.append(texts)
        else:
            yield texts, tile
    yield from scorer.tiles(missing, videos)


@torch.no_grad()
def top_k(
    text_features: Tensor,
    frame_features: Tensor,
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
    for texts, videos, tile in score_tiles(
        text_features,
        frame_features,
        score,
        frame_mask,
        text_tile=text_tile,
        video_tile=video_tile,
        device=device,
    ):
        index = torch.arange(videos.start, videos.stop, device=tile.device).expand_as(tile)
        if texts.start in best:
            scores, indices = best[texts.start]
            tile = torch.cat([scores, tile], dim=1)
            index = torch.cat([indices, index], dim=1)
        # A stable sort keeps earlier, lower-numbered videos ahead of equal later ones.
        tile, position = tile.sort(dim=1, descending=True, stable=True)
        best[texts.start] = tile[:, :k], index.gather(1, position[:, :k])
    scores, indices = zip(*best.values(), strict=True)
    return torch.cat(scores).cpu(), torch.cat(indices).cpu()


@torch.no_grad()
def encode_split(
    model: SupportsRetrieval,
    videos: torch.utils.data.Dataset,
    captions: Sequence[Caption],
    *,
    batch_size: int = 32,
    text_batch_size: int = 256,
    num_workers: int = 0,
    device: torch.device | str | None = None,
    bf16: bool = False,
    features_on_cpu: bool = False,
    progress: bool = False,
) -> EncodedSplit:
    """Encode every caption and every video of a split once.

    Args:
        model: see :class:`SupportsRetrieval`; a module is put in evaluation mode, and every
            submodule's own mode restored at the end.
        videos: items ``(video (F, 3, H, W), frame_mask (F,), video_id)``, as
            :class:`garevla.data.dataset.VideoDataset`.
        captions: objects with ``video_id`` and ``text``, as :class:`garevla.data.msrvtt.Caption`.
        batch_size, text_batch_size: videos and captions encoded at once.
        num_workers: processes that decode videos.
        device: where to encode; by default where the model's first parameter lies.
        bf16: encode under bfloat16 autocast on CUDA devices (no effect elsewhere). Features are
            float32 at least, and scores are always computed outside autocast.
        features_on_cpu: keep the frame features on the CPU, for test sets larger than the GPU.
        progress: show tqdm bars.

    Raises:
        ValueError: no captions or videos, a video id given twice, or a caption of a video that is
            not in ``videos``.
        garevla.data.video.VideoError: as raised by ``videos`` for a file that cannot be read.
    """
    if len(captions) == 0:
        raise ValueError("captions is empty")
    if len(videos) == 0:
        raise ValueError("videos is empty")
    device = torch.device(device) if device is not None else _device_of(model)
    # A generator of its own, so that evaluating leaves a training run's random state alone.
    loader = torch.utils.data.DataLoader(
        videos,
        batch_size=batch_size,
        num_workers=num_workers,
        generator=torch.Generator(),
        pin_memory=device.type == "cuda",
    )
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=bf16 and device.type == "cuda")
    storage = torch.device("cpu") if features_on_cpu else device
    video_ids: list[str] = []
    frame_features = frame_mask = None
    with evaluation_mode(model):
        for video, mask, ids in _bar(loader, progress, "videos"):
            mask = mask.to(device)
            with autocast:
                features = model.encode_video(video.to(device, non_blocking=True), mask)
            features = _at_least_float32(features)
            if frame_features is None:
                # Filled in place: joining batches at the end would need the memory twice.
                shape = (len(videos), *features.shape[1:])
                frame_features = torch.empty(shape, dtype=features.dtype, device=storage)
                frame_mask = torch.empty(shape[:2], dtype=torch.bool, device=storage)
            rows = slice(len(video_ids), len(video_ids) + len(ids))
            frame_features[rows] = features.to(storage)
            frame_mask[rows] = mask.to(storage)
            video_ids.extend(ids)
        # Known before the texts are encoded: a wrong split should not cost the rest of the run.
        targets = _targets(captions, video_ids)
        text_features = []
        for part in _bar(_slices(len(captions), text_batch_size), progress, "captions"):
            tokens = model.tokenize([caption.text for caption in captions[part]])
            with autocast:
                features = model.encode_text(tokens.to(device))
            text_features.append(_at_least_float32(features))
    return EncodedSplit(
        torch.cat(text_features), frame_features, frame_mask, targets, tuple(video_ids)
    )


def evaluate_encoded(
    model: SupportsRetrieval,
    encoded: EncodedSplit,
    *,
    ties: TieRule = "average",
    text_tile: int = TEXT_TILE,
    video_tile: int = VIDEO_TILE,
) -> dict[str, RetrievalMetrics]:
    """Score an encoded split with ``model.similarity``; see :func:`evaluate`."""
    with evaluation_mode(model):
        ranks = streaming_ranks(
            encoded.text_features,
            encoded.frame_features,
            model.similarity,
            encoded.targets,
            encoded.frame_mask,
            ties=ties,
            text_tile=text_tile,
            video_tile=video_tile,
        )
    names = ("text_to_video", "video_to_text")
    return {n: RetrievalMetrics.from_ranks(r) for n, r in zip(names, ranks, strict=True)}


def evaluate(
    model: SupportsRetrieval,
    videos: torch.utils.data.Dataset,
    captions: Sequence[Caption],
    *,
    ties: TieRule = "average",
    text_tile: int = TEXT_TILE,
    video_tile: int = VIDEO_TILE,
    **encoding: Any,
) -> dict[str, RetrievalMetrics]:
    """Retrieval figures of a model on a split, both directions.

    Every caption and video is encoded once, and every pair scored once.

    Args:
        model, videos, captions, encoding: as :func:`encode_split`.
        ties: as :func:`garevla.evaluation.metrics.rank_of_targets`.
        text_tile, video_tile: as :func:`score_tiles`; they change memory and speed, not figures.

    Returns:
        ``{"text_to_video": ..., "video_to_text": ...}``.
    """
    encoded = encode_split(model, videos, captions, **encoding)
    return evaluate_encoded(model, encoded, ties=ties, text_tile=text_tile, video_tile=video_tile)


def _slices(length: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]


def _targets(captions: Sequence[Caption], video_ids: Sequence[str]) -> np.ndarray:
    position = {video_id: index for index, video_id in enumerate(video_ids)}
    if len(position) != len(video_ids):
        twice = next(v for i, v in enumerate(video_ids) if position[v] != i)
        raise ValueError(f"video id {twice!r} occurs twice in videos")
    unknown = [c.video_id for c in captions if c.video_id not in position]
    if unknown:
        raise ValueError(
            f"{len(unknown)} caption(s) belong to videos that are not in videos, "
            f"first: {unknown[0]!r}"
        )
    return np.array([position[c.video_id] for c in captions], dtype=np.int64)


def _at_least_float32(features: Tensor) -> Tensor:
    return features if features.dtype == torch.float64 else features.float()


def _device_of(model: SupportsRetrieval) -> torch.device:
    parameters = model.parameters() if isinstance(model, torch.nn.Module) else iter(())
    first = next(parameters, None)
    return torch.device("cpu") if first is None else first.device


@contextlib.contextmanager
def evaluation_mode(model: SupportsRetrieval) -> Iterator[None]:
    """Put a model in evaluation mode, and every submodule back in its own mode at the end."""
    modules = list(model.modules()) if isinstance(model, torch.nn.Module) else []
    modes = [module.training for module in modules]
    if modules:
        model.eval()
    try:
        yield
    finally:
        # One by one: model.train() would wake up parts that were frozen in evaluation mode.
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode


def _bar(items: Iterable, progress: bool, description: str) -> Iterable:
    if not progress:
        return items
    try:
        from tqdm import tqdm
    except ImportError as error:
        raise ImportError('progress bars need tqdm: pip install "garevla[video]"') from error
    return tqdm(items, desc=description, leave=False)
