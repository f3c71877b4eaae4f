"""Evaluation of a checkpoint."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from garevla.data.dataset import VideoDataset
from garevla.evaluation import RetrievalMetrics, evaluate
from garevla.training.config import ComputeSettings, RankingSettings
from garevla.training.data import make_dataset, read_split
from garevla.training.model import load_model
from garevla.utils.devices import pick_device


@dataclass
class EvaluateConfig(RankingSettings, ComputeSettings):
    """Which checkpoint to evaluate, and on what."""

    checkpoint: Path
    """best.pt or last.pt of a run."""
    annotation_dir: Path | None = None
    """Folder of the annotation files; by default where the run had it."""
    video_dir: Path | None = None
    """Folder with <video_id>.mp4, also in sub-folders; by default where the run had it."""
    bad_videos: Literal["error", "skip"] = "error"
    """What to do about videos that are missing or cannot be read: stop, or leave them out."""
    check_videos: bool = True
    """Decode every video once before evaluating."""
    num_workers: int = 4
    """Processes that decode videos; 0 decodes in the main process."""
    output: Path | None = None
    """JSON file for the figures; by default evaluation.json beside the checkpoint."""


def evaluate_checkpoint(
    config: EvaluateConfig, *, progress: bool = True
) -> dict[str, RetrievalMetrics]:
    """Evaluate a checkpoint on the test split, and write the figures as JSON.

    Returns:
        ``{"text_to_video": ..., "video_to_text": ...}``.

    Raises:
        FileNotFoundError, CheckpointError, ConfigError: as
            :func:`garevla.training.model.load_model`; a device that is not there.
        AnnotationError, BadVideosError, VideoError: data that cannot be used.
    """
    device = pick_device(config.device)
    model, trained = load_model(config.checkpoint, device)
    data = dataclasses.replace(
        trained.data,
        annotation_dir=config.annotation_dir or trained.data.annotation_dir,
        video_dir=config.video_dir or trained.data.video_dir,
        bad_videos=config.bad_videos,
        check_videos=config.check_videos,
        num_workers=config.num_workers,
    )
    output = config.output or config.checkpoint.with_name("evaluation.json")
    output.parent.mkdir(parents=True, exist_ok=True)
    split = read_split(
        data,
        "test",
        check_cache=config.checkpoint.with_name("checked_videos.json"),
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
        bf16=config.autocasts(device),
        progress=progress,
    )
    figures = {name: values.as_dict() for name, values in metrics.items()}
    output.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return metrics
