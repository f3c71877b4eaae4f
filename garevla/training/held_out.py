"""The data that a trained model is tried on."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

from garevla.data import layouts
from garevla.data.dataset import VideoDataset
from garevla.data.splits import RetrievalSplit
from garevla.evaluation import EncodedSplit, encode_split
from garevla.training.config import DataConfig
from garevla.training.data import make_dataset, read_split
from garevla.training.evaluation_settings import HeldOutSettings
from garevla.training.model import RetrievalModel
from garevla.utils.processes import Processes


def held_out_data(settings: HeldOutSettings, trained_on: DataConfig) -> DataConfig:
    """The data that a checkpoint is tried on, seen as it was trained to see data."""
    annotation_dir = settings.annotation_dir or trained_on.annotation_dir
    return dataclasses.replace(
        trained_on,
        annotation_dir=annotation_dir,
        layout=layouts.name_of(settings.layout or trained_on.layout, annotation_dir),
        video_dir=settings.video_dir or trained_on.video_dir,
        test_split=settings.test_split or trained_on.test_split,
        bad_videos=settings.bad_videos,
        check_videos=settings.check_videos,
        frame_cache=settings.frame_cache,
        num_workers=settings.num_workers,
        # Every video is read once.
        keep_in_memory=False,
    )


def read_held_out(
    model: RetrievalModel,
    data: DataConfig,
    checkpoint: Path,
    processes: Processes,
    *,
    progress: bool,
) -> RetrievalSplit:
    """The split, whose videos are checked as :func:`garevla.training.data.read_split` does."""
    return read_split(
        data,
        data.test_split,
        processes,
        resizing=model.encoder.resizing,
        check_cache=checkpoint.with_name("checked_videos.json"),
        progress=progress,
    )


def encode_held_out(
    model: RetrievalModel,
    split: RetrievalSplit,
    data: DataConfig,
    **arguments: Any,
) -> EncodedSplit:
    """Encode the split; ``arguments`` are others of :func:`garevla.evaluation.encode_split`."""
    return encode_split(
        model,
        make_dataset(VideoDataset, split, data, model.encoder),
        split.captions,
        num_workers=data.num_workers,
        **arguments,
    )


def check_writable(output: Path) -> None:
    """Raise OSError where a file cannot be written, before hours of work are lost for it."""
    output.parent.mkdir(parents=True, exist_ok=True)
    if output.is_dir():
        raise IsADirectoryError(f"output is a folder, not a file: {output}")
    if not os.access(output.parent, os.W_OK):
        raise PermissionError(f"output cannot be written: no right to write into {output.parent}")
