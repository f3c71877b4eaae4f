"""Datasets over a split: caption-video pairs for training, videos for evaluation."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from garevla.data._optional import require
from garevla.data.frame_cache import FrameCache
from garevla.data.frame_sampling import DEFAULT_SAMPLING, Sampling
from garevla.data.pseudo_captions import PseudoCaptionError, PseudoCaptions
from garevla.data.resizing import Resizing
from garevla.data.splits import Caption, RetrievalSplit
from garevla.data.video import read_frames


@dataclass
class Batch:
    """A batch of B matching pairs.

    Attributes:
        tokens: (B, L) int64.
        video: (B, F, 3, H, W) float32, normalized; zeros in padded frames.
        frame_mask: (B, F) bool, true for valid frames. Padded frames must not be used.
        video_ids: B ids.
        captions: B texts.
        pseudo_caption_tokens: (B, F, L) int64, a caption of every valid frame; None where there
            are no pseudo captions.
    """

    tokens: Tensor
    video: Tensor
    frame_mask: Tensor
    video_ids: list[str]
    captions: list[str]
    pseudo_caption_tokens: Tensor | None = None

    def to(
        self, device: torch.device | str, non_blocking: bool = False, *, leave_video: bool = False
    ) -> Batch:
        """Return the batch with its tensors on a device, ``video`` where it was if so wished."""
        return self._with_tensors(
            lambda tensor: (
                tensor
                if leave_video and tensor is self.video
                else tensor.to(device, non_blocking=non_blocking)
            )
        )

    def pin_memory(self) -> Batch:
        """Return the batch with its tensors in pinned memory; called by a DataLoader."""
        return self._with_tensors(Tensor.pin_memory)

    def _with_tensors(self, change: Callable[[Tensor], Tensor]) -> Batch:
        return dataclasses.replace(
            self,
            tokens=change(self.tokens),
            video=change(self.video),
            frame_mask=change(self.frame_mask),
            pseudo_caption_tokens=(
                None if self.pseudo_caption_tokens is None else change(self.pseudo_caption_tokens)
            ),
        )


class PairItem(NamedTuple):
    """One training pair: video (F, 3, H, W) float32, frame_mask (F,) bool, and a caption of every
    valid frame where there are any."""

    caption: Caption
    video: Tensor
    frame_mask: Tensor
    pseudo_captions: tuple[str, ...] | None = None


class VideoItem(NamedTuple):
    """One video (F, 3, H, W) float32, with frame_mask (F,) bool; batched by default collation."""

    video: Tensor
    frame_mask: Tensor
    video_id: str


class FrameCrop:
    """The first half of a model's preprocessing: frames become square images.

    Args:
        resizing: how; or a size alone, for what is usual: short side to that size (bicubic,
            antialiased), center crop.
    """

    def __init__(self, resizing: Resizing | int) -> None:
        v2 = require("torchvision.transforms.v2")
        self.resizing = Resizing.of(resizing)
        size = self.resizing.image_size
        squash = self.resizing.resize_mode == "squash"
        self._crop = v2.Compose(
            [
                v2.Resize(
                    [size, size] if squash else size,
                    interpolation=v2.InterpolationMode(self.resizing.interpolation),
                    antialias=True,
                ),
                v2.CenterCrop(size),
            ]
        )

    def __call__(self, frames: np.ndarray) -> Tensor:
        """Resize and crop uint8 frames (n, height, width, 3) to uint8 (n, 3, H, W)."""
        return self._crop(torch.from_numpy(frames).permute(0, 3, 1, 2)).contiguous()


class VideoTransform:
    """A model's preprocessing: :class:`FrameCrop`, and normalization.

    Args:
        resizing: as for :class:`FrameCrop`.
        mean, std: of the R, G and B channels of images in [0, 1].

    Attributes:
        crop: uint8 frames (n, height, width, 3) -> uint8 (n, 3, H, W).
    """

    def __init__(
        self, resizing: Resizing | int, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        v2 = require("torchvision.transforms.v2")
        self.crop = FrameCrop(resizing)
        self._normalize = v2.Compose(
            [v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(mean), list(std))]
        )

    def normalize(self, video: Tensor) -> Tensor:
        """Turn uint8 (n, 3, H, W) into normalized float32."""
        return self._normalize(video)


class _Videos:
    """Reads, transforms and pads videos."""

    def __init__(
        self,
        split: RetrievalSplit,
        transform: VideoTransform,
        sampling: Sampling,
        keep_in_memory: bool,
        frame_cache: str | os.PathLike[str] | None,
    ) -> None:
        self.split = split
        self.transform = transform
        self.sampling = sampling
        self.kept: dict[tuple[Path, Sampling], Tensor] | None = {} if keep_in_memory else None
        self.cache = (
            None if frame_cache is None else FrameCache(frame_cache, transform.crop.resizing)
        )

    def read(self, video_id: str) -> tuple[Tensor, Tensor]:
        """Return video (max_frames, 3, H, W) and frame_mask (max_frames,)."""
        source = self.split.videos[video_id], self.split.sampling_of(video_id, self.sampling)
        cropped = self.kept.get(source) if self.kept is not None else None
        if cropped is None:
            cropped = self._read_cropped(video_id, *source)
            if self.kept is not None:
                # What the cache gives is the file, mapped; systems have a limit of such maps.
                self.kept[source] = cropped if self.cache is None else cropped.clone()
        max_frames = self.sampling.max_frames
        video = torch.zeros(max_frames, *cropped.shape[1:])
        video[: len(cropped)] = self.transform.normalize(cropped)
        return video, torch.arange(max_frames) < len(cropped)

    def _read_cropped(self, video_id: str, path: Path, sampling: Sampling) -> Tensor:
        if self.cache is not None:
            return self.cache.read(video_id, path, sampling)
        return self.transform.crop(read_frames(path, sampling))


class VideoTextDataset(Dataset[PairItem]):
    """Every caption of a split with its video; one item is one pair.

    Args:
        split: captions and videos.
        transform: preprocessing for the encoder.
        sampling: which frames; videos with fewer are padded, and masked, to ``max_frames``.
        keep_in_memory: keep the cropped frames of every video read (3·H·W bytes a frame), in each
            worker separately. For small data sets, read over and over.
        frame_cache: folder of frames that :func:`garevla.data.cache_frames` has written, to read
            in the place of the video files; None decodes these.
        pseudo_captions: captions of the frames, which must cover the split
            (:meth:`garevla.data.PseudoCaptions.cover`).

    Attributes:
        video_ids: the video of each pair, for :class:`garevla.data.UniqueVideoBatchSampler`.
    """

    def __init__(
        self,
        split: RetrievalSplit,
        transform: VideoTransform,
        *,
        sampling: Sampling = DEFAULT_SAMPLING,
        keep_in_memory: bool = False,
        frame_cache: str | os.PathLike[str] | None = None,
        pseudo_captions: PseudoCaptions | None = None,
    ) -> None:
        self.split = split
        self.pseudo_captions = pseudo_captions
        self.video_ids = [caption.video_id for caption in split.captions]
        self._videos = _Videos(split, transform, sampling, keep_in_memory, frame_cache)

    def __len__(self) -> int:
        return len(self.split.captions)

    def __getitem__(self, index: int) -> PairItem:
        """Return a pair.

        Raises:
            VideoError: its video cannot be read.
            FrameCacheError: it is not in the cache as it should be.
            PseudoCaptionError: there is not one pseudo caption for each of its frames.
        """
        caption = self.split.captions[index]
        video, frame_mask = self._videos.read(caption.video_id)
        frame_captions = None
        if self.pseudo_captions is not None:
            frame_captions = self.pseudo_captions.find(caption) or ()
            num_frames = int(frame_mask.sum())
            if len(frame_captions) != num_frames:
                raise PseudoCaptionError(
                    f"{len(frame_captions)} pseudo captions for {caption.video_id!r}, "
                    f"{caption.text!r}, whose video gives {num_frames} frames; they must be made "
                    "with the settings that frames are sampled with (max_frames, sampling, "
                    "frames_per_second)"
                )
        return PairItem(caption, video, frame_mask, frame_captions)


class VideoDataset(Dataset[VideoItem]):
    """Every video of a split once, in the split's order.

    Args: as :class:`VideoTextDataset`.

    Attributes:
        video_ids: the videos in order.
    """

    def __init__(
        self,
        split: RetrievalSplit,
        transform: VideoTransform,
        *,
        sampling: Sampling = DEFAULT_SAMPLING,
        keep_in_memory: bool = False,
        frame_cache: str | os.PathLike[str] | None = None,
    ) -> None:
        self.split = split
        self.video_ids = list(split.videos)
        self._videos = _Videos(split, transform, sampling, keep_in_memory, frame_cache)

    def __len__(self) -> int:
        return len(self.video_ids)

    def __getitem__(self, index: int) -> VideoItem:
        """Return a video.

        Raises:
            VideoError: it cannot be read.
            FrameCacheError: it is not in the cache as it should be.
        """
        video_id = self.video_ids[index]
        return VideoItem(*self._videos.read(video_id), video_id)


def collate_pairs(items: Sequence[PairItem], tokenize: Callable[[list[str]], Tensor]) -> Batch:
    """Join pairs into a batch.

    Args:
        items: from :class:`VideoTextDataset`.
        tokenize: texts -> tokens (B, L) int64; use ``functools.partial`` to make a DataLoader's
            ``collate_fn``.
    """
    captions = [item.caption.text for item in items]
    frame_mask = torch.stack([item.frame_mask for item in items])
    pseudo_caption_tokens = None
    if items[0].pseudo_captions is not None:
        valid = tokenize([text for item in items for text in item.pseudo_captions or ()])
        pseudo_caption_tokens = valid.new_zeros(*frame_mask.shape, valid.shape[1])
        pseudo_caption_tokens[frame_mask] = valid
    return Batch(
        tokens=tokenize(captions),
        video=torch.stack([item.video for item in items]),
        frame_mask=frame_mask,
        video_ids=[item.caption.video_id for item in items],
        captions=captions,
        pseudo_caption_tokens=pseudo_caption_tokens,
    )
