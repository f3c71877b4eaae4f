"""The training loop: deterministic, and exact when resumed at any step."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
import yaml
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_
from torch.utils.data import DataLoader
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from garevla.data.dataset import Batch, PairItem, VideoDataset
from garevla.data.sampler import ShardedBatchSampler
from garevla.evaluation import EncodedSplit, Protocol, RetrievalMetrics, evaluate
from garevla.ops.backends import check_available
from garevla.training.analyse import analyse_encoded
from garevla.training.checkpoint import (
    CheckpointError,
    load_checkpoint,
    random_state,
    save_checkpoint,
)
from garevla.training.compilation import check_compiles, compile_model
from garevla.training.config import ConfigError, TrainConfig
from garevla.training.curves import draw_curves
from garevla.training.data import (
    RunData,
    make_dataset,
    make_train_loader,
    read_run_data,
    with_layout,
)
from garevla.training.log import MetricsLog, read_metrics
from garevla.training.model import RetrievalModel, build_model, load_weights
from garevla.training.optim import build_optimizer
from garevla.training.state import TrainingState, checkpoint_to_resume
from garevla.utils.files import remove_unfinished, write_text
from garevla.utils.locks import lock_folder
from garevla.utils.processes import Processes, join_processes

if TYPE_CHECKING:
    from garevla.head.sharding import Group

logger = logging.getLogger(__name__)

_SEEDS_APART = 1_000_003
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

    Under ``torchrun`` the processes share each batch, with the losses and gradients of one process
    (docs/distributed.md), and the checking and evaluation of videos; the first one writes.

    Args:
        config: the settings.
        progress: show tqdm bars, on terminals only.

    Returns:
        ``{"text_to_video": ..., "video_to_text": ...}`` of the final weights.

    Raises:
        ConfigError: settings that do not fit each other or the run in the output folder, or that
            the machine cannot meet.
        CheckpointError: ``last.pt`` or ``run.init_from`` cannot be read, or is of another run or
            model.
        InUseError: another process is writing into the output folder.
        BackendUnavailableError: ``loss.backend`` cannot run here.
        TrainingError: the loss or a gradient is not finite.
        FileNotFoundError, AnnotationError, BadVideosError, VideoError: data that cannot be used.
        ValueError, PretrainedWeightsError: as :class:`garevla.encoders.ClipEncoder`.
    """
    config = with_layout(config.with_absolute_paths())
    with join_processes(config.run.device) as (processes, device):
        check_available(config.loss.backend, device)
        if config.evaluation.analyse and processes.count > 1:
            raise ConfigError("evaluation.analyse needs a single process: run without torchrun")
        if config.run.compile:
            check_compiles(device)
        show_bars = progress and processes.is_first and sys.stderr.isatty()
        with contextlib.ExitStack() as lock:
            folder = lock_folder(config.run.output_dir)
            processes.by_first(lambda: lock.enter_context(folder))
            return _train(config, device, processes, show_bars=show_bars)


def _train(
    config: TrainConfig, device: torch.device, processes: Processes, *, show_bars: bool
) -> dict[str, RetrievalMetrics]:
    folder = config.run.output_dir
    checkpoint = processes.first_then_others(lambda: checkpoint_to_resume(config))
    if processes.is_first:
        for name in ("last.pt", "best.pt", "config.yaml", "curves.png"):
            remove_unfinished(folder / name)
    torch.manual_seed(config.run.seed)
    # Before the videos are checked, which may take hours: this refuses settings that do not fit.
    model = _initial_model(config, resumes=checkpoint is not None, group=processes.group)
    model = model.to(device)
    if config.run.activation_checkpointing:
        model.encoder.checkpoint_activations()
    if config.run.compile:
        compile_model(model)
    data = read_run_data(config, model.encoder, processes, progress=show_bars)
    loader = make_train_loader(
        config, data, model.encoder, processes, pin_memory=device.type == "cuda"
    )
    num_steps = config.optimizer.epochs * len(loader)
    state = TrainingState(model, *build_optimizer(model, config.optimizer, num_steps))
    if not processes.is_first:
        # What each draws by itself, such as dropout of encoders, is for its own pairs.
        torch.manual_seed(config.run.seed + processes.rank * _SEEDS_APART)
    if checkpoint is not None:
        _restore(state, checkpoint, data.fingerprint, folder / "last.pt", processes)
    processes.by_first(
        lambda: write_text(
            folder / "config.yaml", yaml.safe_dump(config.as_dict(), sort_keys=False)
        )
    )
    metrics_bytes = 0 if checkpoint is None else checkpoint["metrics_bytes"]
    log_file = MetricsLog(folder / "metrics.jsonl", metrics_bytes) if processes.is_first else None
    with log_file or contextlib.nullcontext() as log, logging_redirect_tqdm():
        _Run(
            config,
            state,
            log,
            processes=processes,
            device=device,
            loader=loader,
            data=data,
            test_videos=make_dataset(VideoDataset, data.test, config.data, model.encoder),
            show_bars=show_bars,
        ).finish()
    return state.metrics


def _initial_model(config: TrainConfig, *, resumes: bool, group: Group) -> RetrievalModel:
    """The model as it is before the first step, or one whose weights are about to be replaced."""
    origin = None if resumes else config.run.init_from
    model = build_model(config, pretrained=not resumes and origin is None, group=group)
    if origin is not None:
        weights = load_checkpoint(origin, ("model",))["model"]
        try:
            load_weights(model, weights)
        except CheckpointError as error:
            raise CheckpointError(f"run.init_from, {origin}: {error}") from error
    return model


def _restore(
    state: TrainingState,
    checkpoint: dict[str, Any],
    data_fingerprint: str,
    path: Path,
    processes: Processes,
) -> None:
    if checkpoint["data"] != data_fingerprint:
        raise CheckpointError(f"{path} was trained on other captions or videos")
    try:
        state.load_state_dict(checkpoint, processes.rank)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    logger.info("resumed from %s at step %d", path, state.progress.step)


@dataclass
class _Run:
    """Takes a state from where it stands to the end of the last epoch."""

    config: TrainConfig
    state: TrainingState
    log: MetricsLog | None
    """Of the first process."""
    processes: Processes
    device: torch.device
    loader: DataLoader[PairItem]
    data: RunData
    test_videos: VideoDataset
    show_bars: bool
    curves_drawn_at: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.bfloat16 = self.config.run.autocasts(self.device.type)
        self.model: nn.Module = self.state.model
        if self.processes.count > 1:
            without_captions = self.data.pseudo_captions is None
            self.model = DistributedDataParallel(
                self.state.model,
                device_ids=[self.device] if self.device.type == "cuda" else None,
                # The text tower's adapters are for pseudo captions.
                find_unused_parameters=self.config.model.mode != "gare" and without_captions,
            )

        test = self.data.test
        self.protocol = Protocol.of(
            test.captions,
            tuple(test.videos),
            layout=self.config.data.layout,
            split=self.config.data.test_split,
            ties=self.config.evaluation.ties,
        )

    def note(self, record: dict[str, Any]) -> None:
        """Write a record into the log."""
        if self.log is not None:
            self.log.write(record)

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
        sampler = cast(ShardedBatchSampler, self.loader.batch_sampler)
        sampler.set_epoch(progress.epoch, progress.step_in_epoch)
        self.state.model.train()
        before = time.perf_counter()
        for batch in self.loader:
            record = self._step(batch)
            now = time.perf_counter()
            record["seconds"] = now - before
            samples = len(batch.video_ids) * self.processes.count
            record["samples_per_second"] = samples / (now - before)
            before = now
            self.note({"kind": "train", "step": progress.step, **record})
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
            output = self.model(
                batch.tokens, batch.video, batch.frame_mask, batch.pseudo_caption_tokens
            )
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
            group=self.processes.group,
            observe=self._analyse if self.config.evaluation.analyse else None,
        )
        progress = self.state.progress
        figures = {name: metrics.as_dict() for name, metrics in self.state.metrics.items()}
        self.note(
            {
                "kind": "evaluation",
                "step": progress.step,
                "epoch": progress.epoch,
                **figures,
                "protocol": str(self.protocol),
            }
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

    def _analyse(self, encoded: EncodedSplit) -> None:
        progress = self.state.progress
        found = analyse_encoded(self.state.model, encoded).as_dict()
        place = {"step": progress.step, "epoch": progress.epoch}
        self.note({"kind": "analysis", **place, **found})

    def _save_epoch(self) -> None:
        """Save the state and, where it is the best so far, the model."""
        progress = self.state.progress
        recall = self.state.metrics["text_to_video"].recall_at_1
        if recall > progress.best_recall:
            progress.best_recall = recall
            if self.processes.is_first:
                save_checkpoint(
                    self.config.run.output_dir / "best.pt",
                    {"config": self.config.as_dict(), **self.state.model_state_dict()},
                )
        self._save_last()

    def _save_last(self) -> None:
        random_states = self.processes.gather(random_state())
        if self.log is None:
            return
        save_checkpoint(
            self.config.run.output_dir / "last.pt",
            {
                "config": self.config.as_dict(),
                **self.state.state_dict(),
                "other_random_states": random_states[1:],
                "metrics_bytes": self.log.num_bytes,
                "data": self.data.fingerprint,
            },
        )

    def _draw_curves(self) -> None:
        if self.log is None:
            return
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
