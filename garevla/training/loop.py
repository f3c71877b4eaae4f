"""The training loop: deterministic, and exact when resumed at any step."""

from __future__ import annotations

import dataclasses
import logging
import math
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
import yaml
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.utils.data import DataLoader
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from garevla.data.dataset import Batch, PairItem, VideoDataset
from garevla.data.sampler import UniqueVideoBatchSampler
from garevla.evaluation import RetrievalMetrics, evaluate
from garevla.ops.backends import check_available
from garevla.training.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from garevla.training.config import TrainConfig
from garevla.training.curves import draw_curves
from garevla.training.data import RunData, make_dataset, make_train_loader, read_run_data
from garevla.training.log import MetricsLog, read_metrics
from garevla.training.model import RetrievalModel, build_model, load_weights
from garevla.training.optim import build_optimizer
from garevla.training.state import TrainingState, checkpoint_to_resume
from garevla.utils.devices import pick_device
from garevla.utils.files import remove_unfinished, write_text
from garevla.utils.locks import lock_folder

logger = logging.getLogger(__name__)

# Drawing takes a good second; epochs of small runs do not.
_SECONDS_BETWEEN_CURVES = 60.0


class TrainingError(RuntimeError):
    """Training cannot go on."""


def train(config: TrainConfig, *, progress: bool = True) -> dict[str, RetrievalMetrics]:
    """Train a model and evaluate it on the test split after each epoch.

    Writes into ``config.run.output_dir``: ``config.yaml``; ``metrics.jsonl``, a line per step and
    per evaluation; ``curves.png``; ``last.pt``, from which a run resumes; and ``best.pt``, the
    weights with the best text-to-video R@1. A run that was killed at any moment and resumed
    ends with the weights of an uninterrupted one: bit for bit on one CPU machine.

    Args:
        config: the settings.
        progress: show tqdm bars, on terminals only.

    Returns:
        ``{"text_to_video": ..., "video_to_text": ...}`` of the final weights.

    Raises:
        ConfigError: settings that do not fit each other or the run in the output folder.
        CheckpointError: ``last.pt`` or ``run.init_from`` cannot be read, or is of another run or
            model.
        InUseError: another process is writing into the output folder.
        BackendUnavailableError: ``loss.backend`` cannot run here.
        TrainingError: the loss or a gradient is not finite.
        FileNotFoundError, AnnotationError, BadVideosError, VideoError: data that cannot be used.
        ValueError, PretrainedWeightsError: as :class:`garevla.encoders.ClipEncoder`.
    """
    config = config.with_absolute_paths()
    device = pick_device(config.run.device)
    check_available(config.loss.backend, device)
    with lock_folder(config.run.output_dir):
        return _train(config, device, show_bars=progress and sys.stderr.isatty())


def _train(
    config: TrainConfig, device: torch.device, *, show_bars: bool
) -> dict[str, RetrievalMetrics]:
    folder = config.run.output_dir
    checkpoint = checkpoint_to_resume(config)
    for name in ("last.pt", "best.pt", "config.yaml", "curves.png"):
        remove_unfinished(folder / name)
    torch.manual_seed(config.run.seed)
    # Before the videos are checked, which may take hours: this refuses settings that do not fit.
    model = _initial_model(config, resumes=checkpoint is not None).to(device)
    data = read_run_data(config, model.encoder.tokenizer, progress=show_bars)
    loader = make_train_loader(config, data, model.encoder, pin_memory=device.type == "cuda")
    num_steps = config.optimizer.epochs * len(loader)
    state = TrainingState(model, *build_optimizer(model, config.optimizer, num_steps))
    if checkpoint is not None:
        _restore(state, checkpoint, data.fingerprint, folder / "last.pt")
    write_text(folder / "config.yaml", yaml.safe_dump(config.as_dict(), sort_keys=False))
    metrics_bytes = 0 if checkpoint is None else checkpoint["metrics_bytes"]
    with MetricsLog(folder / "metrics.jsonl", metrics_bytes) as log, logging_redirect_tqdm():
        _Run(
            config,
            state,
            log,
            device=device,
            loader=loader,
            data=data,
            test_videos=make_dataset(VideoDataset, data.test, config.data, model.encoder),
            show_bars=show_bars,
        ).finish()
    return state.metrics


def _initial_model(config: TrainConfig, *, resumes: bool) -> RetrievalModel:
    """The model as it is before the first step, or one whose weights are about to be replaced."""
    origin = None if resumes else config.run.init_from
    model = build_model(config, pretrained=not resumes and origin is None)
    if origin is not None:
        weights = load_checkpoint(origin, ("model",))["model"]
        try:
            load_weights(model, weights)
        except CheckpointError as error:
            raise CheckpointError(f"run.init_from, {origin}: {error}") from error
    return model


def _restore(
    state: TrainingState, checkpoint: dict[str, Any], data_fingerprint: str, path: Path
) -> None:
    if checkpoint["data"] != data_fingerprint:
        raise CheckpointError(f"{path} was trained on other captions or videos")
    try:
        state.load_state_dict(checkpoint)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    logger.info("resumed from %s at step %d", path, state.progress.step)


@dataclass
class _Run:
    """Takes a state from where it stands to the end of the last epoch."""

    config: TrainConfig
    state: TrainingState
    log: MetricsLog
    device: torch.device
    loader: DataLoader[PairItem]
    data: RunData
    test_videos: VideoDataset
    show_bars: bool
    curves_drawn_at: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.bfloat16 = self.config.run.autocasts(self.device.type)

    def finish(self) -> None:
        progress, epochs = self.state.progress, self.config.optimizer.epochs
        if self.config.evaluation.at_start and progress.step == 0:
            self._evaluate()
        with tqdm(
            total=epochs * len(self.loader),
            initial=progress.step,
            desc="training",
            unit="step",
            disable=not self.show_bars,
        ) as bar:
            while progress.epoch < epochs:
                self._train_epoch(bar)
                self._evaluate()
                self._save_epoch()
                if time.monotonic() - self.curves_drawn_at > _SECONDS_BETWEEN_CURVES:
                    self._draw_curves()
        self._draw_curves()

    def _train_epoch(self, bar: tqdm) -> None:
        progress = self.state.progress
        sampler = cast(UniqueVideoBatchSampler, self.loader.batch_sampler)
        sampler.set_epoch(progress.epoch, progress.step_in_epoch)
        self.state.model.train()
        before = time.perf_counter()
        for batch in self.loader:
            record = self._step(batch)
            now = time.perf_counter()
            record["seconds"] = now - before
            record["samples_per_second"] = len(batch.video_ids) / (now - before)
            before = now
            self.log.write({"kind": "train", "step": progress.step, **record})
            bar.update()
            bar.set_postfix(loss=f"{record['loss']:.3f}", refresh=False)
            interval = self.config.run.save_every_steps
            if interval and progress.step % interval == 0:
                self._save_last()
        progress.epoch += 1
        progress.step_in_epoch = 0

    def _step(self, batch: Batch) -> dict[str, Any]:
        """One update; returns what is worth noting."""
        model, optimizer, progress = self.state.model, self.state.optimizer, self.state.progress
        chunked = self.config.run.encoder_chunk > 0
        batch = batch.to(self.device, non_blocking=True, leave_video=chunked)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
            output = model(batch.tokens, batch.video, batch.frame_mask, batch.pseudo_caption_tokens)
        optimizer.zero_grad()
        output.loss.backward()
        grad_norm = clip_grad_norm_(self.state.parameters(), self.config.optimizer.max_grad_norm)
        record = _as_numbers(
            {
                **_loss_terms(output),
                "grad_norm": grad_norm,
                "logit_scale": model.encoder.logit_scale,
            }
        )
        if not all(math.isfinite(number) for number in record.values()):
            shown = ", ".join(f"{name} {number:g}" for name, number in record.items())
            raise TrainingError(
                f"not finite at step {progress.step + 1}: {shown}; videos of the batch: "
                f"{', '.join(batch.video_ids)}"
            )
        learning_rates = {group["name"]: group["lr"] for group in optimizer.param_groups}
        optimizer.step()
        self.state.schedule.step()
        model.encoder.clamp_logit_scale_()
        progress.step += 1
        progress.step_in_epoch += 1
        epoch = round(progress.step / len(self.loader), 6)
        return {"epoch": epoch, **record, **_seeds(output), "learning_rate": learning_rates}

    def _evaluate(self) -> None:
        progress = self.state.progress
        self.state.metrics = evaluate(
            self.state.model,
            self.test_videos,
            self.data.test.captions,
            ties=self.config.evaluation.ties,
            batch_size=self.config.evaluation.batch_size,
            num_workers=self.config.data.num_workers,
            device=self.device,
            bf16=self.bfloat16,
            progress=self.show_bars,
        )
        figures = {name: metrics.as_dict() for name, metrics in self.state.metrics.items()}
        self.log.write(
            {"kind": "evaluation", "step": progress.step, "epoch": progress.epoch, **figures}
        )
        logger.info(
            "epoch %d of %d: R@1 %s",
            progress.epoch,
            self.config.optimizer.epochs,
            ", ".join(
                f"{name.replace('_', ' ')} {metrics.recall_at_1:.1f} %"
                for name, metrics in self.state.metrics.items()
            ),
        )

    def _save_epoch(self) -> None:
        """Save the state and, where it is the best so far, the model."""
        progress = self.state.progress
        recall = self.state.metrics["text_to_video"].recall_at_1
        if recall > progress.best_recall:
            progress.best_recall = recall
            save_checkpoint(
                self.config.run.output_dir / "best.pt",
                {"config": self.config.as_dict(), **self.state.model_state_dict()},
            )
        self._save_last()

    def _save_last(self) -> None:
        save_checkpoint(
            self.config.run.output_dir / "last.pt",
            {
                "config": self.config.as_dict(),
                **self.state.state_dict(),
                "metrics_bytes": self.log.num_bytes,
                "data": self.data.fingerprint,
            },
        )

    def _draw_curves(self) -> None:
        folder = self.config.run.output_dir
        draw_curves(read_metrics(folder / "metrics.jsonl"), folder / "curves.png")
        self.curves_drawn_at = time.monotonic()


def _loss_terms(output: Any) -> dict[str, Tensor]:
    """The loss and its terms by name: every real number among the fields of a loss's output."""
    return {name: value for name, value in _numbers(output).items() if value.is_floating_point()}


def _seeds(output: Any) -> dict[str, int]:
    """Seeds among the fields of a loss's output, which lie on the CPU."""
    return {
        name: int(value)
        for name, value in _numbers(output).items()
        if not value.is_floating_point()
    }


def _numbers(output: Any) -> dict[str, Tensor]:
    values = {each.name: getattr(output, each.name) for each in dataclasses.fields(output)}
    return {
        name: value
        for name, value in values.items()
        if isinstance(value, Tensor) and value.dim() == 0
    }


def _as_numbers(values: dict[str, Tensor]) -> dict[str, float]:
    """0-d tensors as numbers, with one wait for the device for all of them."""
    stacked = torch.stack([value.detach().double() for value in values.values()])
    return dict(zip(values, stacked.tolist(), strict=True))
