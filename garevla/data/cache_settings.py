"""Settings of ``garevla cache``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from garevla.data.frame_sampling import SamplingSettings
from garevla.data.layouts import DEFAULT_LAYOUT
from garevla.data.resizing import Interpolation, ResizeMode


@dataclass
class CacheConfig(SamplingSettings):
    """Which videos to cache, as what, and where."""

    video_dir: Path
    """Folder with <video_id>.mp4, also in sub-folders."""
    output: Path
    """Folder for the cached frames; what is there of the same settings is kept."""
    annotation_dir: Path | None = None
    """Folder of the annotation files, to cache the videos of splits; null: all videos in
    video_dir."""
    layout: str = DEFAULT_LAYOUT
    """Layout of the annotation files; 'garevla datasets' lists them. auto: what the folder looks
    like."""
    splits: list[str] | None = None
    """The splits whose videos are cached, one or more, where annotation_dir is given; by default
    the layout's training split and test."""
    image_size: int = 224
    """Side of the frames in pixels, which must be the model's: 224 for ViT-B/32 and ViT-B/16;
    'garevla models' tells it of others."""
    resize_mode: ResizeMode = "shortest"
    """shortest: the short side becomes image_size, and the center is cut out; squash: both sides
    do. As the model's weights were made for: squash for SigLIP, PE-Core and CLIPA."""
    interpolation: Interpolation = "bicubic"
    """bicubic or bilinear, likewise: bilinear for PE-Core, MobileCLIP and CLIPA."""
    num_workers: int = 4
    """Processes that decode videos, at least 1."""
    verify: bool = False
    """Also read what is there, and replace what is damaged; else its beginning alone is read."""

    def __post_init__(self) -> None:
        for name in ("num_workers", "image_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        _ = self.frame_sampling
