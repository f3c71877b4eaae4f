"""Evaluation of a checkpoint."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import torch

from garevla.data import layouts
from garevla.data.messages import shortened
from garevla.data.splits import AnnotationError, RetrievalSplit
from garevla.evaluation import (
    DualSoftmax,
    Evaluation,
    NearDuplicates,
    PostProcessing,
    Protocol,
    QueryBankNorm,
    encode_texts,
    evaluate_protocol,
)
from garevla.evaluation.comparison import EVALUATION_FILE, ranks_file
from garevla.evaluation.retrieval import shared_tile
from garevla.training.config import ConfigError, DataConfig
from garevla.training.evaluation_settings import EvaluateConfig
from garevla.training.held_out import (
    check_writable,
    encode_held_out,
    held_out_data,
    read_held_out,
)
from garevla.training.model import RetrievalModel, load_model
from garevla.training.official import load_official_model
from garevla.utils.files import write_text
from garevla.utils.processes import Processes, join_processes

logger = logging.getLogger(__name__)


def evaluate_checkpoint(config: EvaluateConfig, *, progress: bool = True) -> Evaluation:
    """Evaluate a checkpoint on the test split; write figures as JSON, all ranks as JSON lines.

    Under ``torchrun`` the processes share the videos and texts (docs/distributed.md).

    Raises:
        FileNotFoundError, CheckpointError, ConfigError: as
            :func:`garevla.training.model.load_model`; a device that is not there.
        PretrainedWeightsError: as :func:`garevla.encoders.load_official`.
        AnnotationError, BadVideosError, VideoError: data that cannot be used, or a list of
            near-duplicates.
        ValueError: as :func:`garevla.evaluation.evaluate_protocol`.
    """
    with join_processes(config.device) as (processes, device):
        if processes.count > 1 and (config.dsl or config.qb_norm):
            raise ConfigError("dsl and qb_norm need a single process: run without torchrun")
        return _evaluate(config, device, processes, progress=progress and processes.is_first)


def _evaluate(
    config: EvaluateConfig, device: torch.device, processes: Processes, *, progress: bool
) -> Evaluation:
    file, model, trained_on = _load(config, device)
    data = held_out_data(config, trained_on)
    output = config.output
    if output is not None:
        processes.by_first(lambda: check_writable(output))
    split = read_held_out(model, data, file, processes, progress=progress)
    video_ids = tuple(split.videos)
    # Read before hours of work are lost for it.
    near_duplicates = (
        None
        if config.near_duplicates is None
        else NearDuplicates.load(config.near_duplicates, video_ids)
    )
    bank = _bank_captions(data, split) if config.qb_norm else []
    protocol = Protocol.of(
        split.captions,
        video_ids,
        layout=data.layout,
        split=data.test_split,
        ties=config.ties,
        video_to_text=config.video_to_text,
        near_duplicates=None if near_duplicates is None else near_duplicates.description,
    )
    encoding: dict[str, Any] = {
        "device": device,
        "bf16": config.autocasts(device.type),
        "progress": progress,
    }
    video_tile = shared_tile(config.batch_size)
    encoded = encode_held_out(
        model,
        split,
        data,
        batch_size=config.batch_size,
        group=processes.group,
        video_tile=video_tile,
        **encoding,
    )
    post_processing: dict[str, PostProcessing] = {}
    if config.dsl:
        post_processing["dual_softmax"] = DualSoftmax(config.dsl_scale)
    if config.qb_norm:
        features = encode_texts(model, bank, **encoding)
        post_processing["qb_norm"] = QueryBankNorm(features, config.qb_norm_beta)
    evaluation = evaluate_protocol(
        model,
        encoded,
        split.captions,
        protocol,
        near_duplicates=near_duplicates,
        post_processing=post_processing,
        num_resamples=config.num_resamples,
        seed=config.seed,
        video_tile=video_tile,
    )
    processes.by_first(lambda: _write(evaluation, config.output, file))
    return evaluation


def _write(evaluation: Evaluation, output: Path | None, checkpoint: Path) -> None:
    path = output or checkpoint.with_name(EVALUATION_FILE)
    try:
        # The figures last: where they are new, so are the ranks.
        write_text(ranks_file(path), "".join(f"{line}\n" for line in evaluation.rank_lines()))
        write_text(path, json.dumps(evaluation.as_dict(), indent=2) + "\n")
    except OSError as error:
        if output is not None:
            raise
        # A run's folder need not be one's own.
        logger.warning("figures are shown, but not kept: %s", error)


def _bank_captions(data: DataConfig, test: RetrievalSplit) -> list[str]:
    """All captions of the training split, save those of test videos.

    Raises:
        AnnotationError: there are none.
    """
    layout = layouts.layout(data.layout)
    split = data.train_split or layout.train_split
    captions = layout.annotations(data.annotation_dir, split).captions
    of_test = dict.fromkeys(c.video_id for c in captions if c.video_id in test.videos)
    if of_test:
        logger.warning(
            "the bank of training captions goes without those of %d test videos: %s",
            len(of_test),
            shortened(of_test),
        )
    bank = [caption.text for caption in captions if caption.video_id not in of_test]
    if not bank:
        raise AnnotationError(
            f"split {split!r} in {data.annotation_dir} has no captions for a bank"
        )
    return bank


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
