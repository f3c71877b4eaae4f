"""Evaluation of a checkpoint."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from pathlib import Path

import torch

from garevla.data.dataset import VideoDataset
from garevla.evaluation import RetrievalMetrics, evaluate
from garevla.training.config import DataConfig, EvaluateConfig
from garevla.training.data import make_dataset, read_split
from garevla.training.model import RetrievalModel, load_model
from garevla.training.official import load_official_model
from garevla.utils.devices import pick_device
from garevla.utils.files import write_text

logger = logging.getLogger(__name__)


def evaluate_checkpoint(
    config: EvaluateConfig, *, progress: bool = True
) -> dict[str, RetrievalMetrics]:
    """Evaluate a checkpoint on the test split, and write the figures as JSON.

    Returns:
        ``{"text_to_video": ..., "video_to_text": ...}``.

    Raises:
        FileNotFoundError, CheckpointError, ConfigError: as
            :func:`garevla.training.model.load_model`; a device that is not there.
        PretrainedWeightsError: as :func:`garevla.encoders.load_official`.
        AnnotationError, BadVideosError, VideoError: data that cannot be used.
    """
    device = pick_device(config.device)
    file, model, trained_on = _load(config, device)
    data = dataclasses.replace(
        trained_on,
        annotation_dir=config.annotation_dir or trained_on.annotation_dir,
        video_dir=config.video_dir or trained_on.video_dir,
        test_split=config.test_split or trained_on.test_split,
        bad_videos=config.bad_videos,
        check_videos=config.check_videos,
        frame_cache=config.frame_cache,
        num_workers=config.num_workers,
        # Every video is read once.
        keep_in_memory=False,
    )
    if config.output is not None:
        _check_writable(config.output)
    split = read_split(
        data,
        data.test_split,
        image_size=model.encoder.image_size,
        check_cache=file.with_name("checked_videos.json"),
        progress=progress,
    )
    metrics = evaluate(
        model,
        make_dataset(VideoDataset, split, data, model.encoder),
        split.captions,
        ties=config.ties,
        batch_size=config.batch_size,
        num_workers=config.num_workers,
        device=device,
        bf16=config.autocasts(device.type),
        progress=progress,
    )
    figures = {name: values.as_dict() for name, values in metrics.items()}
    output = config.output or file.with_name("evaluation.json")
    try:
        write_text(output, json.dumps(figures, indent=2) + "\n")
    except OSError as error:
        if config.output is not None:
            raise
        # A run's folder need not be one's own.
        logger.warning("figures are shown, but not kept: %s", error)
    return metrics


def _load(config: EvaluateConfig, device: torch.device) -> tuple[Path, RetrievalModel, DataConfig]:
    """The file, its model, and how that was trained to see data."""
    if config.checkpoint is not None:
        model, trained = load_model(config.checkpoint, device)
        return config.checkpoint, model, trained.data
    # EvaluateConfig has seen to it.
    assert config.official is not None
    assert config.annotation_dir is not None
    assert config.video_dir is not None
    settings = config.official_settings
    data = DataConfig(
        config.annotation_dir,
        config.video_dir,
        layout=settings.layout,
        max_frames=settings.max_frames,
        sampling=settings.sampling,
        frames_per_second=settings.frames_per_second,
    )
    return config.official, load_official_model(config.official, settings, device), data


def _check_writable(output: Path) -> None:
    """Raise OSError where a file cannot be written, before hours of work are lost for it."""
    output.parent.mkdir(parents=True, exist_ok=True)
    if output.is_dir():
        raise IsADirectoryError(f"output is a folder, not a file: {output}")
    if not os.access(output.parent, os.W_OK):
        raise PermissionError(f"output cannot be written: no right to write into {output.parent}")
