"""Typed settings of what is done with a trained model: evaluation, analysis."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from garevla.data.frame_sampling import SamplingSettings
from garevla.data.layouts import DEFAULT_LAYOUT
from garevla.training.config import (
    ComputeSettings,
    ConfigError,
    RankingSettings,
    check_at_least,
    check_positive,
)
from garevla.utils.padding import Padding


@dataclass
class OfficialConfig(SamplingSettings):
    """How a checkpoint of published code is evaluated: as published for MSR-VTT."""

    model_name: str | None = None
    """An open_clip model, or the path of an open_clip JSON model config; by default told from
    the weights' shapes."""
    context_length: int = 32
    """Tokens per caption, start and end included; longer captions are cut."""
    psi_heads: int = 1
    """Attention heads of psi."""
    pool_temperature: float = 3.0
    """Temperature of the text-conditioned frame pooling."""
    padding: Padding = "ignored"
    """What padded frames of short videos do: nothing, or what they do in the published code."""
    layout: str = DEFAULT_LAYOUT
    """Layout of the annotation files; auto: what the folder looks like."""

    def __post_init__(self) -> None:
        try:
            _ = self.frame_sampling
        except ValueError as error:
            raise ConfigError(f"official_settings.{error}") from error


@dataclass(kw_only=True)
class HeldOutSettings:
    """What a checkpoint is tried on."""

    annotation_dir: Path | None = None
    """Folder of the annotation files; by default where the run had it, if it was one."""
    video_dir: Path | None = None
    """Folder with <video_id>.mp4, also in sub-folders; by default likewise."""
    layout: str | None = None
    """Layout of the annotation files, or auto; by default the run's."""
    test_split: str | None = None
    """Videos to evaluate on, a split of the layout; by default the run's."""
    bad_videos: Literal["error", "skip"] = "error"
    """What to do about videos that are missing or cannot be read: stop, or leave them out."""
    check_videos: bool = True
    """Decode every video once before evaluating."""
    frame_cache: Path | None = None
    """Folder of frames made by 'garevla cache', read in the place of the video files; by default
    these are read, whatever the run did."""
    num_workers: int = 4
    """Processes that decode videos; 0 decodes in the main process."""


@dataclass
class EvaluateConfig(HeldOutSettings, RankingSettings, ComputeSettings):
    """Which checkpoint to evaluate, and on what."""

    checkpoint: Path | None = None
    """best.pt or last.pt of a run."""
    official: Path | None = None
    """Checkpoint of the published code of GARE or CLIP4Clip, in the place of checkpoint."""
    official_settings: OfficialConfig = field(default_factory=OfficialConfig)
    """What such a checkpoint does not say."""
    video_to_text: Literal["caption_sets", "sentences"] = "caption_sets"
    """Candidates of a video where videos have several captions: the best caption of each video,
    or all single captions."""
    near_duplicates: Path | None = None
    """Groups of video ids which count as right answers, too: a JSON list of lists, or a group in
    each line of a CSV or TSV file."""
    dsl: bool = False
    """Also give figures with dual softmax over the test queries, which is transductive."""
    dsl_scale: float = 100.0
    """What similarities are multiplied by in its softmax."""
    qb_norm: bool = False
    """Also give figures with QB-Norm and a bank of all training captions, which is transductive;
    text to video only."""
    qb_norm_beta: float = 20.0
    """What similarities are multiplied by in its softmax."""
    num_resamples: int = 1000
    """Bootstrap samples for the standard errors."""
    seed: int = 0
    """Seed of these samples."""
    output: Path | None = None
    """JSON file for the figures; by default evaluation.json beside the checkpoint. The ranks of
    all queries go into .ranks.jsonl beside it."""

    def __post_init__(self) -> None:
        check_at_least("batch_size", self.batch_size, 1)
        check_at_least("num_workers", self.num_workers, 0)
        check_at_least("num_resamples", self.num_resamples, 2)
        check_at_least("seed", self.seed, 0)
        check_positive("dsl_scale", self.dsl_scale)
        check_positive("qb_norm_beta", self.qb_norm_beta)
        if self.video_to_text not in ("caption_sets", "sentences"):
            raise ConfigError(
                f"video_to_text must be 'caption_sets' or 'sentences', got {self.video_to_text!r}"
            )
        if self.ties == "compat" and self.near_duplicates is not None:
            raise ConfigError(
                "near_duplicates need ties 'average'; 'compat' knows one right answer"
            )
        if (self.checkpoint is None) == (self.official is None):
            raise ConfigError(
                "give checkpoint, of a run, or official, of published code"
                f"{'' if self.checkpoint is None else '; not both'}"
            )
        if self.official is None and self.official_settings != OfficialConfig():
            raise ConfigError("official_settings are for official; a run's checkpoint has its own")
        if self.official is not None and self.layout is not None:
            raise ConfigError("layout is for checkpoint; official has official_settings.layout")
        if self.official is not None and not (self.annotation_dir and self.video_dir):
            raise ConfigError(f"official: {self.official} needs annotation_dir and video_dir")


@dataclass
class AnalyseConfig(HeldOutSettings, ComputeSettings):
    """Which run to analyse, and on what."""

    run: Path
    """Folder of the run, of which best.pt and last.pt are analysed."""
    near_duplicates: Path | None = None
    """Groups of video ids that show nearly the same, whose similarities are given apart: a JSON
    list of lists, or a group in each line of a CSV or TSV file."""
    batch_size: int = 32
    """Videos encoded at once."""
    output: Path | None = None
    """HTML file for the report; by default analysis.html in the run's folder."""

    def __post_init__(self) -> None:
        check_at_least("batch_size", self.batch_size, 1)
        check_at_least("num_workers", self.num_workers, 0)
