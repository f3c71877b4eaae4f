"""Training and evaluation of checkpoints. Needs ``pip install "garevla[video]"``."""

from __future__ import annotations

try:
    import tqdm  # noqa: F401
    import yaml  # noqa: F401
except ImportError as error:
    raise ImportError(
        'garevla.training needs tqdm and PyYAML: pip install "garevla[video]"'
    ) from error

from garevla.training.checkpoint import CheckpointError
from garevla.training.config import (
    ConfigError,
    DataConfig,
    EvaluationConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    TrainConfig,
)
from garevla.training.evaluate import EvaluateConfig, evaluate_checkpoint
from garevla.training.loop import TrainingError, train
from garevla.training.model import RetrievalModel, build_model, load_model

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DataConfig",
    "EvaluateConfig",
    "EvaluationConfig",
    "LossConfig",
    "ModelConfig",
    "OptimizerConfig",
    "RetrievalModel",
    "RunConfig",
    "TrainConfig",
    "TrainingError",
    "build_model",
    "evaluate_checkpoint",
    "load_model",
    "train",
]
