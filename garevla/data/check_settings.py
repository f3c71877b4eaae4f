"""Settings of ``garevla check-data``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from garevla.data.frame_sampling import SamplingSettings
from garevla.data.layouts import DEFAULT_LAYOUT


@dataclass
class CheckDataConfig(SamplingSettings):
    """Which videos to check."""

    annotation_dir: Path
    """Folder of the annotation files."""
    video_dir: Path
    """Folder with <video_id>.mp4, also in sub-folders."""
    layout: str = DEFAULT_LAYOUT
    """Layout of the annotation files; 'garevla datasets' lists them. auto: what the folder looks
    like."""
    splits: list[str] | None = None
    """The splits whose videos are checked, one or more; by default the layout's training split and
    test."""
    num_workers: int = 4
    """Processes that decode videos, at least 1."""

    def __post_init__(self) -> None:
        if self.num_workers < 1:
            raise ValueError(f"num_workers must be at least 1, got {self.num_workers}")
        _ = self.frame_sampling
