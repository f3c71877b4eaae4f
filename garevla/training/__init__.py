"""Training and evaluation of checkpoints. Needs ``pip install "garevla[video]"``."""

from typing import TYPE_CHECKING

try:
    import tqdm  # noqa: F401
    import yaml  # noqa: F401
except ImportError as error:
    raise ImportError(
        'garevla.training needs tqdm and PyYAML: pip install "garevla[video]"'
    ) from error

from garevla.utils.lazy import names_of

# Imported on first use: open_clip takes seconds, and settings have no use for it.
if TYPE_CHECKING:
    from garevla.training.checkpoint import CheckpointError as CheckpointError
    from garevla.training.chunks import in_chunks as in_chunks
    from garevla.training.config import ConfigError as ConfigError
    from garevla.training.config import DataConfig as DataConfig
    from garevla.training.config import EvaluationConfig as EvaluationConfig
    from garevla.training.config import LossConfig as LossConfig
    from garevla.training.config import ModelConfig as ModelConfig
    from garevla.training.config import OptimizerConfig as OptimizerConfig
    from garevla.training.config import RunConfig as RunConfig
    from garevla.training.config import TrainConfig as TrainConfig
    from garevla.training.evaluate import evaluate_checkpoint as evaluate_checkpoint
    from garevla.training.evaluation_settings import EvaluateConfig as EvaluateConfig
    from garevla.training.evaluation_settings import OfficialConfig as OfficialConfig
    from garevla.training.loop import TrainingError as TrainingError
    from garevla.training.loop import train as train
    from garevla.training.model import RetrievalModel as RetrievalModel
    from garevla.training.model import build_model as build_model
    from garevla.training.model import load_model as load_model
    from garevla.training.official import load_official_model as load_official_model
else:
    __getattr__, __dir__, __all__ = names_of(
        __name__,
        {
            "CheckpointError": "garevla.training.checkpoint",
            "in_chunks": "garevla.training.chunks",
            "ConfigError": "garevla.training.config",
            "DataConfig": "garevla.training.config",
            "EvaluationConfig": "garevla.training.config",
            "LossConfig": "garevla.training.config",
            "ModelConfig": "garevla.training.config",
            "OfficialConfig": "garevla.training.evaluation_settings",
            "OptimizerConfig": "garevla.training.config",
            "RunConfig": "garevla.training.config",
            "TrainConfig": "garevla.training.config",
            "EvaluateConfig": "garevla.training.evaluation_settings",
            "evaluate_checkpoint": "garevla.training.evaluate",
            "TrainingError": "garevla.training.loop",
            "train": "garevla.training.loop",
            "RetrievalModel": "garevla.training.model",
            "build_model": "garevla.training.model",
            "load_model": "garevla.training.model",
            "load_official_model": "garevla.training.official",
        },
    )
