"""Typed settings of a training run; the command line and YAML files are made from them."""

from __future__ import annotations

import dataclasses
import os
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from garevla.data.frame_sampling import SamplingSettings
from garevla.data.layouts import DEFAULT_LAYOUT
from garevla.increments.settings import DropoutMode, PsiInit

Config = TypeVar("Config")
Section = TypeVar("Section", "DataConfig", "RunConfig")


# What torch's generators take.
_LARGEST_SEED = 2**63 - 1


class ConfigError(ValueError):
    """Settings that make no sense, or that do not fit each other."""


@dataclass
class DataConfig(SamplingSettings):
    """Where the videos and captions are, and how frames are drawn from a video."""

    annotation_dir: Path
    """Folder of the annotation files."""
    video_dir: Path
    """Folder with <video_id>.mp4, also in sub-folders."""
    layout: str = DEFAULT_LAYOUT
    """Layout of the annotation files; 'garevla datasets' lists them. auto: what the folder looks
    like."""
    train_split: str | None = None
    """Videos to train on, a split of the layout; by default the layout's training split."""
    test_split: str = "test"
    """Videos to evaluate on, another split of the layout."""
    check_videos: bool = True
    """Decode every video once before training; files found good are noted in the output folder
    and not decoded again."""
    bad_videos: Literal["error", "skip"] = "error"
    """What to do about videos that are missing or, where checked, cannot be read: stop, or leave
    them out."""
    pseudo_captions: Path | None = None
    """JSON file of a caption for every sampled frame, for training with DiscoVLA; made by
    'garevla caption'."""
    missing_pseudo_captions: Literal["error", "skip"] = "error"
    """What to do about training captions without pseudo captions: stop, or leave them out."""
    frame_cache: Path | None = None
    """Folder of frames made by 'garevla cache', read in the place of the video files: max_frames,
    sampling, frames_per_second and the model's image size must be those that it was made with.
    check_videos has no effect: what is there has been decoded whole."""
    keep_in_memory: bool = False
    """Keep the frames of every video read in memory; for small data sets."""
    num_workers: int = 4
    """Processes that decode videos; 0 decodes in the main process."""

    def __post_init__(self) -> None:
        try:
            _ = self.frame_sampling
        except ValueError as error:
            raise ConfigError(f"data.{error}") from error
        if self.train_split == self.test_split:
            raise ConfigError(
                f"data.train_split must not be the split of evaluation, got {self.train_split!r}"
            )
        check_at_least("data.num_workers", self.num_workers, 0)


Mode = Literal["gare", "discovla", "gare+discovla"]
Psi = Literal["cross_attention", "gap_mlp"]
Corrects = Literal["text", "video"]


@dataclass
class ModelConfig:
    """The encoder and the increment network."""

    mode: Mode = "gare+discovla"
    """gare: CLIP fine-tuned whole (or frozen), GARE head; discovla: CLIP frozen and adapted,
    mean-frame similarity; gare+discovla: CLIP frozen and adapted, GARE head."""
    name: str = "ViT-B-32-quickgelu"
    """An open_clip model ('garevla models' lists them and the modes that they fit), the path of an
    open_clip JSON model config, or 'tiny'."""
    pretrained: str | None = "openai"
    """open_clip's name of the weights, the path of a local checkpoint (of a run's best.pt: CLIP's
    part), or null: random."""
    freeze_clip: bool = False
    """Keep CLIP as it is in mode gare, logit scale included, and train the head and the temporal
    transformer; no backward pass then goes through CLIP. With DiscoVLA it is always frozen."""
    temporal_layers: int | None = None
    """Blocks of the temporal transformer over frames, without which their order goes unseen;
    0 leaves it out. Default: 4 in mode gare, 0 with DiscoVLA, as published."""
    context_length: int = 32
    """Tokens per caption, start and end included; longer captions are cut."""
    psi: Psi = "cross_attention"
    """The increment network. cross_attention: the gap attends to the video's frames, as published;
    gap_mlp: one hidden layer on the gap alone."""
    corrects: Corrects = "text"
    """What psi's increments are added to. text: as published code does, from the video's frames;
    video: to the mean frame, from the words of the text, as the paper does for ActivityNet."""
    psi_heads: int = 1
    """Attention heads of psi (cross_attention)."""
    psi_dropout: float = 0.3
    """Dropout probability in psi."""
    psi_dropout_mode: DropoutMode = "video"
    """Dropout masks of psi (cross_attention). video: one per video, shared by all texts, fast;
    pair: one per pair of text and video, as published."""
    psi_init: PsiInit = "published"
    """Length of untrained increments. published: 0.02 times the feature dimension; small: a
    hundredth of that, which starts from the similarity without increments."""
    psi_hidden_dim: int = 512
    """Hidden units of psi (gap_mlp)."""
    psi_activation: str = "gelu"
    """Activation of psi (gap_mlp): gelu, gelu_tanh, silu, relu or quick_gelu."""
    lora_rank: int = 8
    """Rank of DiscoVLA's updates of the attention projections."""
    adapter_width: int = 8
    """Width of DiscoVLA's fusion adapters."""
    vision_fusion_blocks: int = 4
    """How many of the last vision blocks fuse the frames of a video (DiscoVLA)."""
    text_fusion_blocks: int = 2
    """How many of the last text blocks fuse the pseudo captions of a video (DiscoVLA)."""

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise ConfigError(f"model.name must be a model's name or file, got {self.name!r}")
        if self.mode not in get_args(Mode):
            raise ConfigError(f"model.mode must be one of {get_args(Mode)}, got {self.mode!r}")
        if self.psi not in get_args(Psi):
            raise ConfigError(f"model.psi must be one of {get_args(Psi)}, got {self.psi!r}")
        if self.corrects not in get_args(Corrects):
            raise ConfigError(
                f"model.corrects must be one of {get_args(Corrects)}, got {self.corrects!r}"
            )
        if self.corrects == "video" and self.mode == "discovla":
            raise ConfigError("model.corrects video is for modes with increments, not discovla")
        if self.psi_init not in get_args(PsiInit):
            raise ConfigError(
                f"model.psi_init must be one of {get_args(PsiInit)}, got {self.psi_init!r}"
            )
        if self.temporal_layers is None:
            self.temporal_layers = 4 if self.mode == "gare" else 0


@dataclass
class LossConfig:
    """InfoNCE; GARE's three regularizers and DiscoVLA's two frame-level terms, by mode."""

    pool_temperature: float = 3.0
    """Temperature of the text-conditioned frame pooling; it divides dot products of features: of
    those much longer than CLIP's nearly one frame counts, and a higher one is better."""
    alpha: float = 2.0
    """Sharpness of the directional diversity."""
    beta: float = 1e-4
    """Weight of the information bottleneck."""
    lambda_direction: float = 0.01
    """Weight of the directional diversity."""
    direction_samples: int | None = None
    """Estimate the directional diversity from so many videos per text, for batches in which its
    cubic cost is out of reach; null: exact."""
    lambda_trust: float = 0.01
    """Weight of the trust region."""
    trust_floor: float = 0.5
    """The trust region is 0 once the norms' variance exceeds this."""
    bottleneck_reduction: Literal["sum", "mean"] = "sum"
    """The bottleneck's reduction over feature dimensions: sum (published code, beta 1e-4) or mean
    (paper, beta 0.07)."""
    label_smoothing: float = 0.0
    """Share of every target that all videos and texts of the batch have in equal parts (gare and
    gare+discovla, video level)."""
    backend: str = "auto"
    """Backend of the pair operation; 'garevla env' lists them."""
    frame_weight: float = 0.3
    """Weight of DiscoVLA's frame-level loss; off without pseudo captions."""
    distillation_weight: float = 1.0
    """Weight of DiscoVLA's alignment distillation; off without pseudo captions."""
    distillation: Literal["published", "mean_detached"] = "published"
    """published: sum of divergences times 100 / batch size squared; mean_detached: their mean,
    whatever the batch size, and no gradient for the frame level."""


@dataclass
class OptimizerConfig:
    """AdamW with linear warm-up and cosine decay."""

    epochs: int = 5
    """Passes over the training captions."""
    batch_size: int = 128
    """Caption-video pairs per step, all of different videos."""
    learning_rate: float = 1e-4
    """Peak learning rate of psi, the adapters and the temporal transformer."""
    clip_lr_scale: float = 1e-3
    """CLIP's learning rate as a share of learning_rate, in mode gare; 1 to train CLIP from random
    weights."""
    weight_decay: float = 0.2
    """Decoupled weight decay; biases, LayerNorms and the logit scale are exempt, save the biases
    of DiscoVLA's adapters, which decay as published."""
    warmup_proportion: float = 0.1
    """Share of all steps in which the learning rate rises from 0."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm."""
    fused: bool = True
    """Update all weights in one kernel on CPUs and CUDA; the same to rounding."""

    def __post_init__(self) -> None:
        check_at_least("optimizer.epochs", self.epochs, 1)
        check_at_least("optimizer.batch_size", self.batch_size, 2)
        check_positive("optimizer.learning_rate", self.learning_rate)
        check_positive("optimizer.clip_lr_scale", self.clip_lr_scale)
        check_at_least("optimizer.weight_decay", self.weight_decay, 0)
        check_positive("optimizer.max_grad_norm", self.max_grad_norm)
        if not 0 <= self.warmup_proportion < 1:
            raise ConfigError(
                f"optimizer.warmup_proportion must be in [0, 1), got {self.warmup_proportion}"
            )


@dataclass(kw_only=True)
class RankingSettings:
    """How figures are made from a model."""

    batch_size: int = 32
    """Videos encoded at once."""
    ties: Literal["average", "compat"] = "average"
    """Rank of a right answer that has the same score as others: average over the tie, or the
    published code's count."""


@dataclass(kw_only=True)
class ComputeSettings:
    """Where and how a model runs."""

    device: str = "auto"
    """auto: CUDA where there is one, else CPU; or a torch device such as cuda:1."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the encoders: auto is bfloat16 autocast on CUDA and float32 on CPU."""

    def autocasts(self, device_type: str) -> bool:
        """Whether the encoders run under bfloat16 autocast on devices of a type."""
        return self.precision == "bfloat16" or (self.precision == "auto" and device_type == "cuda")


@dataclass
class EvaluationConfig(RankingSettings):
    """Evaluation on the test split, after each epoch."""

    at_start: bool = False
    """Also evaluate before the first step, as epoch 0."""
    analyse: bool = False
    """Also note what the increments do, for 'garevla analyse'; of a single process."""

    def __post_init__(self) -> None:
        check_at_least("evaluation.batch_size", self.batch_size, 1)


@dataclass
class RunConfig(ComputeSettings):
    """Where a run writes, where it computes, and how it repeats."""

    output_dir: Path = Path("runs/gare")
    """Folder for last.pt, best.pt, config.yaml, metrics.jsonl and curves.png."""
    seed: int = 0
    """Seed of weights, data order and dropout."""
    save_every_steps: int = 200
    """Steps between checkpoints within an epoch; 0 saves at ends of epochs only."""
    encoder_chunk: int = 0
    """Pairs that are encoded at once, for batches whose activations would not fit: the gradients
    are those of the whole batch, and encoders' forward passes run twice. 0 encodes all at once."""
    activation_checkpointing: bool = False
    """Keep the input of each of the encoder's blocks alone for the backward pass, which runs the
    block again: the same gradients with less memory."""
    compile: bool = False
    """Compile the encoder's blocks and the loss (torch.compile), which takes minutes at first and
    needs a C++ compiler on CPUs, Triton on GPUs. Dropout draws other masks than without."""
    resume: bool = False
    """Go on from output_dir/last.pt where there is one."""
    init_from: Path | None = None
    """best.pt or last.pt of another run, with whose weights this one begins: for more epochs, or
    other data. Its model must be the same; optimizer and schedule begin anew."""

    def __post_init__(self) -> None:
        check_at_least("run.save_every_steps", self.save_every_steps, 0)
        check_at_least("run.encoder_chunk", self.encoder_chunk, 0)
        check_at_least("run.seed", self.seed, 0)
        if self.seed > _LARGEST_SEED:
            raise ConfigError(f"run.seed must be at most {_LARGEST_SEED}, got {self.seed}")


@dataclass
class TrainConfig:
    """A training run."""

    data: DataConfig
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def with_absolute_paths(self) -> TrainConfig:
        """The same settings, with paths that hold from any working directory."""
        name, pretrained = self.model.name, self.model.pretrained
        return dataclasses.replace(
            self,
            data=_absolute(self.data),
            run=_absolute(self.run),
            model=dataclasses.replace(
                self.model,
                name=os.path.abspath(name) if _is_path(name) else name,
                pretrained=(
                    os.path.abspath(pretrained)
                    if pretrained is not None and _is_path(pretrained)
                    else pretrained
                ),
            ),
        )

    def as_dict(self) -> dict[str, Any]:
        """Nested dictionary of plain values, for checkpoints and YAML."""
        return {
            section: {
                name: str(value) if isinstance(value, Path) else value
                for name, value in values.items()
            }
            for section, values in dataclasses.asdict(self).items()
        }


def config_from_dict(kind: type[Config], values: dict[str, Any]) -> Config:
    """Build settings from plain values; the inverse of :meth:`TrainConfig.as_dict`.

    Args:
        kind: a dataclass of settings, whose fields may be such dataclasses.
        values: by field name; strings stand for paths, dictionaries for nested settings.

    Raises:
        ConfigError: unknown or missing settings.
    """
    if not isinstance(values, dict):
        raise ConfigError(f"not the settings that {kind.__name__} takes: {values!r}")
    types = typing.get_type_hints(kind)
    arguments = {}
    for name, value in values.items():
        expected = types.get(name)
        if isinstance(expected, type) and dataclasses.is_dataclass(expected):
            value = config_from_dict(expected, value)
        elif isinstance(value, str) and Path in (expected, *typing.get_args(expected)):
            value = Path(value)
        arguments[name] = value
    try:
        return kind(**arguments)
    except TypeError as error:
        raise ConfigError(f"not the settings that {kind.__name__} takes: {error}") from error


# Settings that leave the trained weights as they are, to rounding and to what dropout draws on
# another device; a resumed run may change them.
_FREE_TO_CHANGE = {
    "data": {
        "annotation_dir",
        "video_dir",
        "layout",
        "test_split",
        "pseudo_captions",
        "frame_cache",
        "check_videos",
        "keep_in_memory",
        "num_workers",
    },
    "optimizer": {"fused"},
    "evaluation": {"analyse", "at_start", "batch_size"},
    "run": {
        "output_dir",
        "device",
        "save_every_steps",
        "activation_checkpointing",
        "compile",
        "resume",
    },
}


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Settings, as ``section.name: old -> new``, that keep ``new`` from continuing ``old``.

    Args:
        old, new: from :meth:`TrainConfig.as_dict`.
    """
    changes = []
    for section in sorted(old.keys() | new.keys()):
        before, after = old.get(section, {}), new.get(section, {})
        for name in sorted((before.keys() | after.keys()) - _FREE_TO_CHANGE.get(section, set())):
            if _comparable(before.get(name)) != _comparable(after.get(name)):
                changes.append(f"{section}.{name}: {before.get(name)!r} -> {after.get(name)!r}")
    return changes


def _is_path(value: str) -> bool:
    """Whether a model or its weights are given as a file, not by a name that open_clip knows."""
    path = Path(value)
    return bool(path.suffix) or len(path.parts) > 1 or path.is_file()


def _absolute(section: Section) -> Section:
    """A section of the settings with all its paths absolute."""
    paths: dict[str, Any] = {
        each.name: Path(os.path.abspath(value))
        for each in dataclasses.fields(section)
        if isinstance(value := getattr(section, each.name), Path)
    }
    return dataclasses.replace(section, **paths)


def _comparable(value: Any) -> Any:
    """A setting as it is compared: a file's folder says nothing, and differs between machines."""
    return Path(value).name if isinstance(value, str) and _is_path(value) else value


def check_at_least(name: str, value: float, least: float) -> None:
    """Raise ConfigError where a setting is less than it may be."""
    if not value >= least:
        raise ConfigError(f"{name} must be at least {least}, got {value}")


def check_positive(name: str, value: float) -> None:
    """Raise ConfigError where a setting is not positive and finite."""
    if not 0 < value < float("inf"):
        raise ConfigError(f"{name} must be positive and finite, got {value}")
