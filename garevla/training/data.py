"""Splits, datasets and loaders of a run, made from its settings."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from garevla.data import layouts
from garevla.data.check import load_split
from garevla.data.dataset import (
    PairItem,
    VideoDataset,
    VideoTextDataset,
    collate_pairs,
)
from garevla.data.frame_cache import FrameCache
from garevla.data.pseudo_captions import PseudoCaptions
from garevla.data.resizing import Resizing
from garevla.data.sampler import ShardedBatchSampler, UniqueVideoBatchSampler
from garevla.data.splits import AnnotationError, Caption, RetrievalSplit, log_overlap
from garevla.encoders import ClipEncoder
from garevla.training.config import ConfigError, DataConfig, TrainConfig
from garevla.utils.processes import ALONE, Processes

logger = logging.getLogger(__name__)

AnyDataset = TypeVar("AnyDataset", VideoDataset, VideoTextDataset)


@dataclass(frozen=True)
class RunData:
    """What a run trains on and what it is evaluated on.

    Attributes:
        train: the training split; with pseudo captions, what they cover of it.
        test: the test split.
        pseudo_captions: of the training videos' frames, or None.
        fingerprint: hash of what training sees; see :func:`fingerprint`.
    """

    train: RetrievalSplit
    test: RetrievalSplit
    pseudo_captions: PseudoCaptions | None
    fingerprint: str


def read_run_data(
    config: TrainConfig, encoder: ClipEncoder, processes: Processes = ALONE, *, progress: bool
) -> RunData:
    """Load both splits of a run and, where its model has a use for them, the pseudo captions.

    Args:
        config: the settings; files found good are noted in their output folder.
        encoder: the model's, whose tokens and image size count.
        processes: that share the checking of videos.
        progress: show bars while checking videos.

    Raises:
        ConfigError: a context length at which all captions are the same.
        FileNotFoundError, AnnotationError, BadVideosError, FrameCacheError: as
            :func:`read_split`.
        FileNotFoundError, PseudoCaptionError: as
            :class:`garevla.data.pseudo_captions.PseudoCaptions`.
    """
    check_cache = config.run.output_dir / "checked_videos.json"
    config = with_layout(config)
    # That function has seen to it.
    assert config.data.train_split is not None
    splits = (config.data.train_split, config.data.test_split)
    # What takes moments to read is read before what may take hours.
    pseudo_captions = _read_pseudo_captions(config)
    layout = layouts.layout_of(config.data.layout, config.data.annotation_dir)
    for split in splits:
        everything = layout.captions_and_files(
            config.data.annotation_dir, config.data.video_dir, split
        )
        _check_captions_differ(
            everything.captions, split, encoder.tokenizer, config.model.context_length
        )
    train, test = (
        read_split(
            config.data,
            split,
            processes,
            resizing=encoder.resizing,
            check_cache=check_cache,
            progress=progress,
        )
        for split in splits
    )
    log_overlap(train, test)
    if pseudo_captions is not None:
        train = pseudo_captions.cover(train, missing=config.data.missing_pseudo_captions)
    if len(train.videos) < 2:
        raise AnnotationError(
            f"split {config.data.train_split!r} has captions of {len(train.videos)} video that can "
            "be used; a batch needs two, one of them to tell the other from"
        )
    return RunData(train, test, pseudo_captions, fingerprint(train, pseudo_captions))


def with_layout(config: TrainConfig) -> TrainConfig:
    """The same settings, with the layout's name and its own training split where they name none.

    Raises:
        FileNotFoundError, AnnotationError, ValueError: as :func:`garevla.data.layouts.layout_of`.
    """
    data = config.data
    name = layouts.name_of(data.layout, data.annotation_dir)
    split = data.train_split or layouts.layout(name).train_split
    named = dataclasses.replace(data, layout=name, train_split=split)
    return dataclasses.replace(config, data=named)


def _check_captions_differ(
    captions: Sequence[Caption],
    split: str,
    tokenize: Callable[[list[str]], Tensor],
    context_length: int,
) -> None:
    texts = list(dict.fromkeys(caption.text for caption in captions))
    first = tokenize(texts[:1])
    # Mostly over after a few.
    if len(texts) > 1 and all(torch.equal(tokenize([text]), first) for text in texts[1:]):
        raise ConfigError(
            f"model.context_length {context_length} cuts all {len(texts)} captions of split "
            f"{split!r} to the same tokens, as {texts[0]!r} and {texts[1]!r}"
        )


def _read_pseudo_captions(config: TrainConfig) -> PseudoCaptions | None:
    path = config.data.pseudo_captions
    if path is None:
        return None
    pseudo_captions = PseudoCaptions.load(path)
    if config.model.mode == "gare":
        logger.warning("mode gare has no use for pseudo captions: %s is left aside", path)
        return None
    return pseudo_captions


def read_split(
    config: DataConfig,
    split: str,
    processes: Processes = ALONE,
    *,
    resizing: Resizing,
    check_cache: Path | None,
    progress: bool,
) -> RetrievalSplit:
    """Load a split, checking its videos first where the settings say so.

    Args:
        processes: that share the checking.
        resizing: the model's, which cached frames must have.
        check_cache: where files found good are noted.
        progress: show a bar while checking.

    Raises:
        FileNotFoundError, AnnotationError, BadVideosError: as :func:`garevla.data.load_split`.
        FrameCacheError: as :meth:`garevla.data.FrameCache.load_split`.
    """
    if config.frame_cache is not None:
        return FrameCache(config.frame_cache, resizing).load_split(
            config.annotation_dir,
            config.video_dir,
            split,
            layout=config.layout,
            sampling=config.frame_sampling,
            bad_videos=config.bad_videos,
        )
    if not config.check_videos:
        return layouts.layout_of(config.layout, config.annotation_dir).load(
            config.annotation_dir, config.video_dir, split, missing=config.bad_videos
        )
    return load_split(
        config.annotation_dir,
        config.video_dir,
        split,
        layout=config.layout,
        bad_videos=config.bad_videos,
        sampling=config.frame_sampling,
        num_workers=config.num_workers,
        cache=check_cache,
        progress=progress,
        processes=processes,
    )


def make_dataset(
    kind: type[AnyDataset],
    split: RetrievalSplit,
    config: DataConfig,
    encoder: ClipEncoder,
    **options: Any,
) -> AnyDataset:
    """A :class:`VideoTextDataset` or :class:`VideoDataset` of a split for an encoder."""
    return kind(
        split,
        encoder.video_transform(),
        sampling=config.frame_sampling,
        keep_in_memory=config.keep_in_memory,
        frame_cache=config.frame_cache,
        **options,
    )


def make_train_loader(
    config: TrainConfig,
    data: RunData,
    encoder: ClipEncoder,
    processes: Processes,
    *,
    pin_memory: bool,
) -> DataLoader[PairItem]:
    """Batches of training pairs, in the order of a :class:`UniqueVideoBatchSampler`, or this
    process's part of each.

    The loader draws nothing from the global random state, which dropout depends on.

    Raises:
        ConfigError: batches of fewer pairs than there are processes.
    """
    pairs = make_dataset(
        VideoTextDataset, data.train, config.data, encoder, pseudo_captions=data.pseudo_captions
    )
    num_workers = config.data.num_workers
    batches = UniqueVideoBatchSampler(
        pairs.video_ids, config.optimizer.batch_size, seed=config.run.seed
    )
    _log_batches(batches, len(pairs))
    if batches.pairs_per_batch[0] < processes.count:
        raise ConfigError(
            f"batches of {batches.pairs_per_batch[0]} pairs do not go round {processes.count} "
            "processes: fewer processes, or a larger optimizer.batch_size"
        )
    return DataLoader(
        pairs,
        batch_sampler=ShardedBatchSampler(batches, processes.rank, processes.count),
        collate_fn=functools.partial(collate_pairs, tokenize=encoder.tokenizer.trimmed),
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        pin_memory=pin_memory,
        generator=torch.Generator(),
    )


def _log_batches(batches: UniqueVideoBatchSampler, num_captions: int) -> None:
    """Say what an epoch will be like; that it is not as asked for is a warning."""
    smallest, largest = batches.pairs_per_batch
    sizes = str(smallest) if smallest == largest else f"{smallest} or {largest}"
    left_out = num_captions - batches.pairs_per_epoch
    asked_for = not left_out and largest == batches.batch_size
    logger.log(
        logging.INFO if asked_for else logging.WARNING,
        "%d batches of %s captions an epoch%s%s",
        len(batches),
        sizes,
        "" if largest == batches.batch_size else f", not of {batches.batch_size}",
        f"; each epoch leaves out {left_out} of {num_captions} captions, others each time: some "
        "videos have more than would fit in such batches"
        if left_out
        else "",
    )


def fingerprint(split: RetrievalSplit, pseudo_captions: PseudoCaptions | None = None) -> str:
    """Hash of a split's captions and video ids, and of the pseudo captions: equal where training
    sees the same pairs."""
    digest = hashlib.sha256()
    for caption in split.captions:
        frames = pseudo_captions.find(caption) if pseudo_captions is not None else None
        digest.update("\0".join([caption.video_id, caption.text, *(frames or ())]).encode())
        digest.update(b"\0\0")
    return digest.hexdigest()
