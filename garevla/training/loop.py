"""The training loop: deterministic, and exact when resumed at any step."""

from __future__ import annotations

import logging
import math
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any

import torch
import yaml
from torch.nn.utils import clip_grad_norm_
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from garevla.data.dataset import Batch, VideoDataset, VideoTextDataset
from garevla.data.pseudo_captions import PseudoCaptions
from garevla.data.sampler import UniqueVideoBatchSampler
from garevla.evaluation import RetrievalMetrics, evaluate
from garevla.training.checkpoint import (
    CheckpointError,
    load_checkpoint,
    random_state,
    save_checkpoint,
    set_random_state,
)
from garevla.training.config import ConfigError, TrainConfig, differences
from garevla.training.curves import draw_curves
from garevla.training.data import fingerprint, make_dataset, make_train_loader, read_split
from garevla.training.log import MetricsLog, read_metrics
from garevla.training.model import build_model, load_weights
from garevla.training.optim import create_optimiser, create_schedule, parameter_groups
from garevla.utils.devices import pick_device

logger = logging.getLogger(__name__)

# Drawing takes a good second; epochs of small runs do not.
_SECONDS_BETWEEN_CURVES = 60.0
_TERMS = (
    "loss",
    "contrastive",
    "bottleneck",
    "direction",
    "trust_region",
    "frame",
    "distillation",
)


class TrainingError(RuntimeError):
    """Training cannot go on."""


@dataclass
class Progress:
    """Where a run stands.

    Attributes:
        epoch: epochs finished.
        step_in_epoch: steps done of the current epoch.
        step: steps done in all.
        best_recall: best text-to-video R@1 after an epoch, in per cent; -1 before the first.
    """

    epoch: int = 0
    step_in_epoch: int = 0
    step: int = 0
    best_recall: float = -1.0


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
        CheckpointError: ``last.pt`` cannot be read, or belongs to another run.
        TrainingError: the loss or a gradient is not finite.
        FileNotFoundError, AnnotationError, BadVideosError, VideoError: data that cannot be used.
        ValueError, PretrainedWeightsError: as :class:`garevla.encoders.ClipEncoder`.
    """
    return _Run(config, progress).run()


class _Run:
    def __init__(self, config: TrainConfig, show_progress: bool) -> None:
        self.config = config
        self.device = pick_device(config.run.device)
        precision = config.run.precision
        self.bf16 = precision == "bfloat16" or (precision == "auto" and self.device.type == "cuda")
        self.show_bars = show_progress and sys.stderr.isatty()
        self.folder = config.run.output_dir
        saved = self._saved_state()
        train_split, test_split = (
            read_split(
                config.data,
                split,
                check_cache=self.folder / "checked_videos.json",
                progress=self.show_bars,
            )
            for split in (config.data.train_split, "test")
        )
        pseudo_captions = None
        if config.model.mode != "gare" and config.data.pseudo_captions is not None:
            pseudo_captions = PseudoCaptions.load(config.data.pseudo_captions)
            train_split = pseudo_captions.cover(
                train_split, missing=config.data.missing_pseudo_captions
            )
        self.fingerprint = fingerprint(train_split, pseudo_captions)
        self.folder.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(config.run.seed)
        self.model = build_model(config, pretrained=saved is None).to(self.device)
        encoder = self.model.encoder
        self.videos = make_dataset(VideoDataset, test_split, config.data, encoder)
        self.captions = test_split.captions
        pairs = make_dataset(
            VideoTextDataset, train_split, config.data, encoder, pseudo_captions=pseudo_captions
        )
        self.sampler = UniqueVideoBatchSampler(
            pairs.video_ids, config.optimiser.batch_size, seed=config.run.seed
        )
        self.loader = make_train_loader(
            pairs,
            self.sampler,
            encoder,
            num_workers=config.data.num_workers,
            pin_memory=self.device.type == "cuda",
        )
        self.total_steps = config.optimiser.epochs * len(self.sampler)
        groups = parameter_groups(
            self.model,
            encoder.clip,
            learning_rate=config.optimiser.learning_rate,
            clip_lr_scale=config.optimiser.clip_lr_scale,
            weight_decay=config.optimiser.weight_decay,
        )
        self.parameters = [parameter for group in groups for parameter in group["params"]]
        self.optimiser = create_optimiser(groups)
        self.schedule = create_schedule(
            self.optimiser, self.total_steps, config.optimiser.warmup_proportion
        )
        self.progress = Progress()
        self.metrics: dict[str, RetrievalMetrics] = {}
        self.drawn_at = time.monotonic()
        if saved is not None:
            self._restore(saved)
        self.log = MetricsLog(
            self.folder / "metrics.jsonl", 0 if saved is None else saved["metrics_bytes"]
        )
        (self.folder / "config.yaml").write_text(
            yaml.safe_dump(config.as_dict(), sort_keys=False), encoding="utf-8"
        )

    def run(self) -> dict[str, RetrievalMetrics]:
        with self.log, logging_redirect_tqdm():
            if self.config.evaluation.at_start and self.progress.step == 0:
                self._evaluate()
            with tqdm(
                total=self.total_steps,
                initial=self.progress.step,
                desc="training",
                unit="step",
                disable=not self.show_bars,
            ) as bar:
                while self.progress.epoch < self.config.optimiser.epochs:
                    self._epoch(bar)
                    if time.monotonic() - self.drawn_at > _SECONDS_BETWEEN_CURVES:
                        self._draw_curves()
            self._draw_curves()
        return self.metrics

    def _epoch(self, bar: tqdm) -> None:
        progress = self.progress
        self.sampler.set_epoch(progress.epoch, progress.step_in_epoch)
        self.model.train()
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
        self._evaluate()
        recall = self.metrics["text_to_video"].recall_at_1
        if recall > progress.best_recall:
            progress.best_recall = recall
            save_checkpoint(self.folder / "best.pt", self._weights())
        self._save_last()

    def _step(self, batch: Batch) -> dict[str, float]:
        """One update; returns what is worth noting."""
        batch = batch.to(self.device, non_blocking=True)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            output = self.model(
                batch.tokens, batch.video, batch.frame_mask, batch.pseudo_caption_tokens
            )
        self.optimiser.zero_grad()
        output.loss.backward()
        grad_norm = clip_grad_norm_(self.parameters, self.config.optimiser.max_grad_norm)
        values = {name: getattr(output, name, None) for name in _TERMS}
        values = {name: value for name, value in values.items() if value is not None}
        values["grad_norm"] = grad_norm
        values["logit_scale"] = self.model.encoder.logit_scale
        # One wait for the device, for all of them.
        numbers = torch.stack([value.detach().double() for value in values.values()]).tolist()
        record = dict(zip(values, numbers, strict=True))
        if not all(math.isfinite(number) for number in numbers):
            shown = ", ".join(f"{name} {number:g}" for name, number in record.items())
            raise TrainingError(
                f"not finite at step {self.progress.step + 1}: {shown}; videos of the batch: "
                f"{', '.join(batch.video_ids)}"
            )
        rates = {group["name"]: group["lr"] for group in self.optimiser.param_groups}
        self.optimiser.step()
        self.schedule.step()
        self.model.encoder.clamp_logit_scale_()
        self.progress.step += 1
        self.progress.step_in_epoch += 1
        epochs = self.progress.step / len(self.sampler)
        return {"epoch": round(epochs, 6), **record, "learning_rate": rates}

    def _evaluate(self) -> None:
        self.metrics = evaluate(
            self.model,
            self.videos,
            self.captions,
            ties=self.config.evaluation.ties,
            batch_size=self.config.evaluation.batch_size,
            num_workers=self.config.data.num_workers,
            device=self.device,
            bf16=self.bf16,
            progress=self.show_bars,
        )
        figures = {name: metrics.as_dict() for name, metrics in self.metrics.items()}
        epoch = self.progress.epoch
        self.log.write(
            {"kind": "evaluation", "step": self.progress.step, "epoch": epoch, **figures}
        )
        logger.info(
            "epoch %d of %d: R@1 %s",
            epoch,
            self.config.optimiser.epochs,
            ", ".join(
                f"{name.replace('_', ' ')} {metrics.recall_at_1:.1f} %"
                for name, metrics in self.metrics.items()
            ),
        )

    def _draw_curves(self) -> None:
        draw_curves(read_metrics(self.folder / "metrics.jsonl"), self.folder / "curves.png")
        self.drawn_at = time.monotonic()

    def _weights(self) -> dict[str, Any]:
        return {
            "config": self.config.as_dict(),
            "model": self.model.state_dict(),
            "progress": asdict(self.progress),
            "metrics": {name: metrics.as_dict() for name, metrics in self.metrics.items()},
        }

    def _save_last(self) -> None:
        save_checkpoint(
            self.folder / "last.pt",
            {
                **self._weights(),
                "optimiser": self.optimiser.state_dict(),
                "schedule": self.schedule.state_dict(),
                "random_state": random_state(),
                "metrics_bytes": self.log.num_bytes,
                "data": self.fingerprint,
            },
        )

    def _saved_state(self) -> dict[str, Any] | None:
        """The checkpoint to resume from, read and compared before anything is changed."""
        path = self.folder / "last.pt"
        if not path.exists():
            return None
        if not self.config.run.resume:
            raise ConfigError(
                f"{self.folder} holds a run already: resume it (run.resume: true), or choose "
                "another run.output_dir"
            )
        state = load_checkpoint(path)
        changed = differences(state["config"], self.config.as_dict())
        if changed:
            raise ConfigError(
                f"{path} was trained with other settings, so it cannot be resumed: "
                f"{'; '.join(changed)}"
            )
        return state

    def _restore(self, state: dict[str, Any]) -> None:
        path = self.folder / "last.pt"
        if state["data"] != self.fingerprint:
            raise CheckpointError(f"{path} was trained on other captions or videos")
        load_weights(self.model, state["model"])
        try:
            self.optimiser.load_state_dict(state["optimiser"])
        except ValueError as error:
            raise CheckpointError(f"{path} holds another optimiser: {error}") from error
        self.schedule.load_state_dict(state["schedule"])
        self.progress = Progress(**state["progress"])
        self.metrics = {
            name: RetrievalMetrics(**values) for name, values in state["metrics"].items()
        }
        set_random_state(state["random_state"])
        logger.info("resumed from %s at step %d", path, self.progress.step)
