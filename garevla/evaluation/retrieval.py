"""Retrieval figures of a model on a whole test set."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence, Sized
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor

from garevla.evaluation.metrics import RetrievalMetrics, TieRule
from garevla.evaluation.shares import Share, share_of
from garevla.evaluation.streaming import streaming_ranks
from garevla.evaluation.tiles import TEXT_TILE, VIDEO_TILE
from garevla.head.texts import Texts
from garevla.utils.modes import evaluation_mode
from garevla.utils.slices import slices_of

if TYPE_CHECKING:
    from garevla.data.splits import Caption
    from garevla.head.sharding import Group

# Videos scored at once, where they may have to be shared by processes.
_SHARED_TILE = 64


class SupportsRetrieval(Protocol):
    """What :func:`evaluate` needs of a model."""

    def tokenize(self, texts: list[str]) -> Tensor:
        """Return tokens (A, L)."""

    def encode_text(self, tokens: Tensor) -> Tensor | Texts:
        """Return text features (A, D), or with those of their words."""

    def encode_video(self, video: Tensor, frame_mask: Tensor) -> Tensor:
        """Return frame features (B, F, D)."""

    def similarity(self, text_features: Any, frame_features: Tensor, frame_mask: Tensor) -> Tensor:
        """Return scores (A, B)."""


@dataclass(frozen=True)
class EncodedSplit:
    """Features of every caption and every video of a split, each encoded once.

    Attributes:
        text_features: (A, D), or with those of their words.
        frame_features: (B, F, D).
        frame_mask: (B, F) bool.
        targets: (A,) int64, each caption's video.
        video_ids: B ids, in the order of the videos.
        share: where processes share the videos, which of them ``frame_features`` and
            ``frame_mask`` have; all else is of the whole split.
    """

    text_features: Tensor | Texts
    frame_features: Tensor
    frame_mask: Tensor
    targets: np.ndarray
    video_ids: tuple[str, ...]
    share: Share | None = None


@torch.no_grad()
def encode_split(
    model: SupportsRetrieval,
    videos: torch.utils.data.Dataset[Any],
    captions: Sequence[Caption],
    *,
    batch_size: int = 32,
    text_batch_size: int = 256,
    num_workers: int = 0,
    device: torch.device | str | None = None,
    bf16: bool = False,
    features_on_cpu: bool = False,
    progress: bool = False,
    group: Group = None,
    video_tile: int = VIDEO_TILE,
) -> EncodedSplit:
    """Encode every caption and every video of a split once.

    Args:
        model: see :class:`SupportsRetrieval`; a module is put in evaluation mode, and every
            submodule's own mode restored at the end.
        videos: items ``(video (F, 3, H, W), frame_mask (F,), video_id)``, as
            :class:`garevla.data.dataset.VideoDataset`.
        captions: objects with ``video_id`` and ``text``, as :class:`garevla.data.Caption`.
        batch_size, text_batch_size: videos and captions encoded at once.
        num_workers: processes that decode videos.
        device: where to encode; by default where the model's first parameter lies.
        bf16: encode under bfloat16 autocast on CUDA devices (no effect elsewhere). Features are
            float32 at least, and scores are always computed outside autocast.
        features_on_cpu: keep the frame features on the CPU, for test sets larger than the GPU.
        progress: show tqdm bars.
        group: processes that share the work, as in :class:`garevla.GareLoss`: each encodes some of
            the texts and videos.
        video_tile: in whole tiles of so many videos, and whole batches, they are shared.

    Raises:
        ValueError: no captions or videos, a video id given twice, or a caption of a video that is
            not in ``videos``.
        garevla.data.video.VideoError: as raised by ``videos`` for a file that cannot be read.
    """
    if len(captions) == 0:
        raise ValueError("captions is empty")
    num_videos = len(cast(Sized, videos))
    if num_videos == 0:
        raise ValueError("videos is empty")
    device = torch.device(device) if device is not None else _device_of(model)
    share = share_of(group, num_videos, math.lcm(batch_size, video_tile))
    if share is not None:
        own_videos = range(num_videos)[share.rows]
        videos, num_videos = torch.utils.data.Subset(videos, own_videos), len(own_videos)
    # A generator of its own, so that evaluating leaves a training run's random state alone.
    loader = torch.utils.data.DataLoader(
        videos,
        batch_size=batch_size,
        num_workers=num_workers,
        generator=torch.Generator(),
        pin_memory=device.type == "cuda",
    )
    encode = _Encoder(model, device, bf16=bf16, progress=progress)
    with evaluation_mode(model):
        frame_features, frame_mask, video_ids = encode.videos(
            loader, num_videos, torch.device("cpu") if features_on_cpu else device
        )
        if share is not None:
            video_ids = share.joined(video_ids)
        # Known before the texts are encoded: a wrong split should not cost the rest of the run.
        targets = _targets(captions, video_ids)
        texts = [caption.text for caption in captions]
        texts_share = share_of(group, len(texts), text_batch_size)
        text_features = encode.texts(texts, text_batch_size, texts_share)
    return EncodedSplit(text_features, frame_features, frame_mask, targets, tuple(video_ids), share)


@torch.no_grad()
def encode_texts(
    model: SupportsRetrieval,
    texts: list[str],
    *,
    text_batch_size: int = 256,
    device: torch.device | str | None = None,
    bf16: bool = False,
    progress: bool = False,
) -> Tensor | Texts:
    """Encode texts as :func:`encode_split` does; returns text features (A, D), or with those of
    their words.

    Raises:
        ValueError: no texts.
    """
    if len(texts) == 0:
        raise ValueError("texts is empty")
    device = torch.device(device) if device is not None else _device_of(model)
    with evaluation_mode(model):
        return _Encoder(model, device, bf16=bf16, progress=progress).texts(
            texts, text_batch_size, None
        )


class _Encoder:
    """Runs a model's encoders on a device, in bfloat16 there if asked for; features are float32
    at least."""

    def __init__(
        self, model: SupportsRetrieval, device: torch.device, *, bf16: bool, progress: bool
    ) -> None:
        self.model = model
        self.device = device
        self.progress = progress
        self.autocast = torch.autocast(
            device.type, torch.bfloat16, enabled=bf16 and device.type == "cuda"
        )

    def videos(
        self, loader: Iterable[Any], num_videos: int, storage: torch.device
    ) -> tuple[Tensor, Tensor, list[str]]:
        """Frame features (B, F, D) and frame mask (B, F) in ``storage``, and B video ids."""
        video_ids: list[str] = []
        stored: tuple[Tensor, Tensor] | None = None
        for video, mask, ids in _bar(loader, self.progress, "videos"):
            mask = mask.to(self.device)
            with self.autocast:
                features = self.model.encode_video(video.to(self.device, non_blocking=True), mask)
            features = _at_least_float32(features)
            if stored is None:
                # Filled in place: joining batches at the end would need the memory twice.
                shape = (num_videos, *features.shape[1:])
                stored = (
                    torch.empty(shape, dtype=features.dtype, device=storage),
                    torch.empty(shape[:2], dtype=torch.bool, device=storage),
                )
            frame_features, frame_mask = stored
            rows = slice(len(video_ids), len(video_ids) + len(ids))
            frame_features[rows] = features.to(storage)
            frame_mask[rows] = mask.to(storage)
            video_ids.extend(ids)
        if stored is None:  # the other processes have all of them
            stored = torch.empty(0, 1, 1, device=storage), torch.empty(0, 1, device=storage)
        return *stored, video_ids

    def texts(self, texts: list[str], batch_size: int, share: Share | None) -> Tensor | Texts:
        """Text features (A, D), or with those of their words, of which this process encodes its
        share."""
        text_features: list[Any] = []
        if share is not None:
            texts = texts[share.rows]
        for batch in _bar(slices_of(len(texts), batch_size), self.progress, "captions"):
            tokens = self.model.tokenize(texts[batch])
            with self.autocast:
                features = self.model.encode_text(tokens.to(self.device))
            text_features.append(_at_least_float32(features))
        own: Any = None
        if text_features and isinstance(text_features[0], Texts):
            own = Texts.cat(text_features).tensors()
        elif text_features:
            own = (torch.cat(text_features),)
        if share is not None:
            own = [share.join(each) for each in share.like_others(own, self.device)]
        assert own is not None  # there are texts
        return own[0] if len(own) == 1 else Texts(*own)


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
            share=encoded.share,
        )
    names = ("text_to_video", "video_to_text")
    return {n: RetrievalMetrics.from_ranks(r) for n, r in zip(names, ranks, strict=True)}


def evaluate(
    model: SupportsRetrieval,
    videos: torch.utils.data.Dataset[Any],
    captions: Sequence[Caption],
    *,
    ties: TieRule = "average",
    text_tile: int = TEXT_TILE,
    video_tile: int = _SHARED_TILE,
    batch_size: int = 32,
    observe: Callable[[EncodedSplit], None] | None = None,
    **encoding: Any,
) -> dict[str, RetrievalMetrics]:
    """Retrieval figures of a model on a split, both directions.

    Every caption and video is encoded once, and every pair scored once. Processes that share the
    work (``group``) return the figures of one process, to the bit.

    Args:
        model, videos, captions, batch_size, encoding: as :func:`encode_split`.
        ties: as :func:`garevla.evaluation.metrics.rank_of_targets`.
        text_tile, video_tile: as :func:`score_tiles`; they change memory and speed, not figures.
        observe: is given the encoded split, for whatever else is to be known of it.

    Returns:
        ``{"text_to_video": ..., "video_to_text": ...}``.
    """
    video_tile = shared_tile(batch_size, video_tile)
    tiles = {"text_tile": text_tile, "video_tile": video_tile}
    encoded = encode_split(
        model, videos, captions, batch_size=batch_size, video_tile=video_tile, **encoding
    )
    if observe is not None:
        observe(encoded)
    return evaluate_encoded(model, encoded, ties=ties, **tiles)


def shared_tile(batch_size: int, video_tile: int = _SHARED_TILE) -> int:
    """Videos scored at once, in whole batches: else shares of what both divide would be large."""
    return -(-video_tile // max(1, batch_size)) * batch_size


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


def _at_least_float32(features: Any) -> Any:
    return features if features.dtype == torch.float64 else features.to(torch.float32)


def _device_of(model: SupportsRetrieval) -> torch.device:
    parameters = model.parameters() if isinstance(model, torch.nn.Module) else iter(())
    first = next(parameters, None)
    return torch.device("cpu") if first is None else first.device


def _bar(items: Iterable[Any], progress: bool, description: str) -> Iterable[Any]:
    if not progress:
        return items
    try:
        from tqdm import tqdm
    except ImportError as error:
        raise ImportError('progress bars need tqdm: pip install "garevla[video]"') from error
    return tqdm(items, desc=description, leave=False)
