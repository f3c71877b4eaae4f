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
from garevla.utils.files import write_text
from garevla.utils.processes import Processes, join_processes

logger = logging.getLogger(__name__)


def evaluate_checkpoint(
    config: EvaluateConfig, *, progress: bool = True
) -> dict[str, RetrievalMetrics]:
    """Evaluate a checkpoint on the test split, and write the figures as JSON.

    Under ``torchrun`` the processes share the videos and texts (docs/distributed.md).

    Returns:
        ``{"text_to_video": ..., "video_to_text": ...}``.

    Raises:
        FileNotFoundError, CheckpointError, ConfigError: as
            :func:`garevla.training.model.load_model`; a device that is not there.
        PretrainedWeightsError: as :func:`garevla.encoders.load_official`.
        AnnotationError, BadVideosError, VideoError: data that cannot be used.
    """
    with join_processes(config.device) as (processes, device):
        return _evaluate(config, device, processes, progress=progress and processes.is_first)


def _evaluate(
    config: EvaluateConfig, device: torch.device, processes: Processes, *, progress: bool
) -> dict[str, RetrievalMetrics]:
    file, model, trained_on = _load(config, device)
    data = dataclasses.replace(
        trained_on,
        annotation_dir=config.annotation_dir or trained_on.annotation_dir,
        video_dir=config.video_dir or trained_on.video_dir,
        bad_videos=config.bad_videos,
        check_videos=config.check_videos,
        num_workers=config.num_workers,
        # Every video is read once.
        keep_in_memory=False,
    )
    output = config.output
    if output is not None:
        processes.by_first(lambda: _check_writable(output))
    split = read_split(
        data,
        "test",
        processes,
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
        group=processes.group,
    )
    processes.by_first(lambda: _write(metrics, config.output, file))
    return metrics


def _write(metrics: dict[str, RetrievalMetrics], output: Path | None, checkpoint: Path) -> None:
    figures = {name: values.as_dict() for name, values in metrics.items()}
    text = json.dumps(figures, indent=2) + "\n"
    if output is not None:
        write_text(output, text)
        return
    try:
        write_text(checkpoint.with_name("evaluation.json"), text)
    except OSError as error:
        # A run's folder need not be one's own.
        logger.warning("figures are shown, but not kept: %s", error)


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
