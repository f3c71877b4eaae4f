"""What training changes: the model, its optimizer, and how far they have come."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from torch.nn import Parameter
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from garevla.data.messages import first_line
from garevla.evaluation import RetrievalMetrics
from garevla.training.checkpoint import (
    CheckpointError,
    load_checkpoint,
    random_state,
    set_random_state,
)
from garevla.training.config import ConfigError, TrainConfig, config_from_dict, differences
from garevla.training.model import RetrievalModel, load_weights
from garevla.training.optim import load_optimizer

_NEEDED_TO_RESUME = (
    "config",
    "data",
    "metrics",
    "metrics_bytes",
    "model",
    "optimizer",
    "progress",
    "random_state",
    "schedule",
)


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


@dataclass
class TrainingState:
    """Everything that a run changes as it goes; torch's random generators belong to it too.

    Attributes:
        model: what is trained.
        optimizer: of the model's parameters.
        schedule: of the optimizer's learning rates.
        progress: epochs and steps so far.
        metrics: of the last evaluation, by direction; empty before the first.
    """

    model: RetrievalModel
    optimizer: AdamW
    schedule: LambdaLR
    progress: Progress = field(default_factory=Progress)
    metrics: dict[str, RetrievalMetrics] = field(default_factory=dict)

    def parameters(self) -> list[Parameter]:
        """The parameters that train."""
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def model_state_dict(self) -> dict[str, Any]:
        """The model, how far it is trained, and its figures: what using it takes."""
        return {
            "model": self.model.state_dict(),
            "progress": asdict(self.progress),
            "metrics": {name: metrics.as_dict() for name, metrics in self.metrics.items()},
        }

    def state_dict(self) -> dict[str, Any]:
        """All that is needed to go on."""
        return {
            **self.model_state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "random_state": random_state(),
        }

    def load_state_dict(self, state: dict[str, Any], rank: int = 0) -> None:
        """Bring back what :meth:`state_dict` returned; other keys are left alone.

        Args:
            state: of any number of processes.
            rank: of this process, whose random state is among ``other_random_states`` unless it is
                the first; where there is none, its generators stay as they are.

        Raises:
            CheckpointError: of another model or optimizer.
        """
        load_weights(self.model, state["model"])
        try:
            load_optimizer(self.optimizer, state["optimizer"])
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"the checkpoint holds another optimizer: {error}") from error
        try:
            self.schedule.load_state_dict(state["schedule"])
            self.progress = Progress(**state["progress"])
            self.metrics = {
                name: RetrievalMetrics(**figures) for name, figures in state["metrics"].items()
            }
            own = [state["random_state"], *state.get("other_random_states", [])][rank : rank + 1]
            for random_state_then in own:
                set_random_state(random_state_then)
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"the checkpoint is not one to go on from: {first_line(error)}"
            ) from error


def checkpoint_to_resume(config: TrainConfig) -> dict[str, Any] | None:
    """The checkpoint that a run goes on from, or None where it begins anew.

    Raises:
        ConfigError: the output folder holds a run that is not to be resumed, or that was trained
            with other settings.
        CheckpointError: as :func:`garevla.training.checkpoint.load_checkpoint`.
    """
    folder = config.run.output_dir
    path = folder / "last.pt"
    if not path.exists():
        return None
    if not config.run.resume:
        raise ConfigError(
            f"{folder} holds a run already: resume it (run.resume: true), or choose another "
            "run.output_dir"
        )
    checkpoint = load_checkpoint(path, _NEEDED_TO_RESUME)
    # Settings that came later had what is their default now.
    try:
        before = config_from_dict(TrainConfig, checkpoint["config"])
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from error
    changes = differences(
        before.with_absolute_paths().as_dict(), config.with_absolute_paths().as_dict()
    )
    if changes:
        raise ConfigError(
            f"{path} was trained with other settings, so it cannot be resumed (a new run can begin "
            f"with its weights, run.init_from): {'; '.join(changes)}"
        )
    return checkpoint
