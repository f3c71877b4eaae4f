"""Analysis of a run: what its increments do."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from garevla.analysis import Analysis, analyse
from garevla.analysis.report import report
from garevla.data.splits import RetrievalSplit
from garevla.evaluation import EncodedSplit, NearDuplicates
from garevla.training.config import ConfigError
from garevla.training.evaluation_settings import AnalyseConfig
from garevla.training.held_out import (
    check_writable,
    encode_held_out,
    held_out_data,
    read_held_out,
)
from garevla.training.log import read_metrics
from garevla.training.model import RetrievalModel, load_model
from garevla.utils.files import write_text
from garevla.utils.processes import Processes, join_processes

logger = logging.getLogger(__name__)

CHECKPOINTS = ("best.pt", "last.pt")
REPORT_FILE = "analysis.html"


def analyse_encoded(
    model: RetrievalModel, encoded: EncodedSplit, groups: Tensor | None = None
) -> Analysis:
    """Analyse a model on an encoded split, as :func:`garevla.analysis.analyse`.

    Args:
        model: whose loss and logit scale count.
        encoded: of the whole split, not of a share.
        groups: (B,) int64, of which equal ones mark near-duplicates.
    """
    scale = model.encoder.logit_scale
    return analyse(
        model.criterion,
        encoded.text_features,
        encoded.frame_features.to(scale.device),
        scale,
        encoded.frame_mask.to(scale.device),
        targets=torch.from_numpy(encoded.targets).to(scale.device),
        groups=groups,
    )


def analyse_run(config: AnalyseConfig, *, progress: bool = True) -> Path:
    """Analyse a run's checkpoints on a split, and write one page with what they and its log say.

    Checkpoints of the same weights are analysed once.

    Returns:
        The page.

    Raises:
        FileNotFoundError: there is no such run, or it has no checkpoint.
        CheckpointError, ConfigError: as :func:`garevla.training.model.load_model`; torchrun.
        ImportError: matplotlib is not installed.
        AnnotationError, BadVideosError, VideoError: data that cannot be used, or a list of
            near-duplicates.
        ValueError: the run's metrics.jsonl is damaged.
        OSError: the page cannot be written.
    """
    output = config.output or config.run / REPORT_FILE
    checkpoints = _checkpoints(config.run)
    check_writable(output)
    log = config.run / "metrics.jsonl"
    records = read_metrics(log) if log.is_file() else []
    with join_processes(config.device) as (processes, device):
        if processes.count > 1:
            raise ConfigError("analyse needs a single process: run without torchrun")
        found, split = _analyse_checkpoints(
            config, checkpoints, device, processes, progress=progress
        )
    notes = [
        f"{len(split.captions)} captions and {len(split.videos)} videos of {config.run}; InfoNCE "
        "is that of all of them together, as if they were one batch."
    ]
    over_epochs = [record for record in records if record.get("kind") == "analysis"]
    title = f"Increments of {config.run.resolve().name}"
    write_text(output, report(title, notes, found, over_epochs))
    return output


def _checkpoints(run: Path) -> list[Path]:
    if not run.is_dir():
        raise FileNotFoundError(f"no folder of a run: {run}")
    found = [run / name for name in CHECKPOINTS if (run / name).is_file()]
    if not found:
        raise FileNotFoundError(f"{run} has no checkpoint: neither {' nor '.join(CHECKPOINTS)}")
    return found


def _analyse_checkpoints(
    config: AnalyseConfig,
    checkpoints: list[Path],
    device: torch.device,
    processes: Processes,
    *,
    progress: bool,
) -> tuple[dict[str, dict[str, Any]], RetrievalSplit]:
    """Analyses by the checkpoints' names, and the split they are of."""
    found: dict[str, dict[str, Any]] = {}
    split: RetrievalSplit | None = None
    before: dict[str, Tensor] = {}
    # All at first: that one is damaged should not be told after hours.
    models = [load_model(path, device) for path in checkpoints]
    for path, (model, trained) in zip(checkpoints, models, strict=True):
        weights = model.state_dict()
        if before and all(torch.equal(weights[name], before[name]) for name in weights):
            name, analysis = found.popitem()
            found[f"{name}, {path.name}"] = analysis
            continue
        before = weights
        data = held_out_data(config, trained.data)
        if split is None:
            split = read_held_out(model, data, path, processes, progress=progress)
        video_ids = tuple(split.videos)
        groups = None
        if config.near_duplicates is not None:
            near = NearDuplicates.load(config.near_duplicates, video_ids)
            groups = torch.from_numpy(near.groups)
        encoded = encode_held_out(
            model,
            split,
            data,
            batch_size=config.batch_size,
            device=device,
            bf16=config.autocasts(device.type),
            progress=progress,
        )
        found[path.name] = analyse_encoded(model, encoded, groups).as_dict()
    assert split is not None  # there is a checkpoint
    return found, split
