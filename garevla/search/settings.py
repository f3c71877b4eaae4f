"""Settings of ``garevla index`` and ``garevla search``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from garevla.search.cutting import Cutting, Segments
from garevla.training.config import ComputeSettings, ConfigError, check_at_least


@dataclass(kw_only=True)
class IndexConfig(ComputeSettings):
    """What to index, with which model, and how. What is left out is as it was when the index was
    made."""

    video_dir: Path
    """Folder of videos, also in sub-folders; may be given without its flag, first."""
    output: Path
    """The index, a folder; made where there is none, else brought up to date."""
    model: str | None = None
    """best.pt of a run, or an open_clip model, the path of an open_clip JSON model config, or
    'tiny'. Default: ViT-B-32-quickgelu with pretrained openai."""
    pretrained: str | None = None
    """Of an open_clip model: open_clip's name of the weights, or the path of a checkpoint."""
    segments: Segments | None = None
    """fixed: of segment_seconds; whole: a video is one; shots: found by PySceneDetect, cut further
    where they are longer than segment_seconds. Default: fixed."""
    segment_seconds: float | None = None
    """Length of a segment. Default: 10."""
    overlap_seconds: float | None = None
    """What a segment shares with the next. Default: 2."""
    max_frames: int | None = None
    """The most frames taken of a segment, for an open_clip model; a checkpoint knows. Default:
    12."""
    frames_per_second: float | None = None
    """Frames per second of video, likewise. Default: 1."""
    frames_dtype: str | None = None
    """How frame features are kept, float16 or float32. Default: float16."""
    bank: Path | None = None
    """Text file of captions, one a line, whose best scores tell what a score is worth. Default: 128
    captions that come with garevla."""
    graph: bool = False
    """Also keep a graph of the segments (usearch), which finds candidates among many millions
    without a look at each, and not always all of them."""
    verify: bool = False
    """Compare all that is there with its checksums first; what is damaged is indexed again, and bad
    files are tried again."""
    batch_size: int = 16
    """Segments encoded at once."""
    num_workers: int = 2
    """Processes that decode videos, at least 1."""
    timeout: float = 3600.0
    """Seconds for decoding one file; what takes longer is a bad file."""

    def __post_init__(self) -> None:
        check_at_least("batch_size", self.batch_size, 1)
        check_at_least("num_workers", self.num_workers, 1)
        if not self.timeout > 0:
            raise ConfigError(f"timeout must be positive, got {self.timeout}")
        if self.frames_dtype not in (None, "float16", "float32"):
            raise ConfigError(f"frames_dtype must be float16 or float32, got {self.frames_dtype!r}")
        if self.pretrained is not None and self.model is None:
            raise ConfigError("pretrained is for a model: give both")
        _ = self.cutting()

    def cutting(self, default: Cutting | None = None) -> Cutting:
        """How videos are cut; what is not said is as in ``default``."""
        default = default or Cutting()
        given: dict[str, Any] = {
            "segments": self.segments,
            "seconds": self.segment_seconds,
            "overlap": self.overlap_seconds,
        }
        values = {
            name: getattr(default, name) if value is None else value
            for name, value in given.items()
        }
        if self.segment_seconds is not None and self.overlap_seconds is None:
            values["overlap"] = min(values["overlap"], self.segment_seconds / 5)
        return Cutting(**values)


@dataclass(kw_only=True)
class SearchConfig(ComputeSettings):
    """What to look for, and where."""

    library: Path
    """An index that 'garevla index' made; may be given without its flag, first."""
    text: str | None = None
    """What to look for; may be given without its flag, second."""
    like: Path | None = None
    """A video to look for similar ones, in the place of text."""
    top: int = 10
    """Results."""
    candidates: int = 200
    """Segments of the first stage that are scored exactly."""
    exact: bool = False
    """Score all segments exactly."""
    json: bool = False
    """Print JSON."""
    contact_sheet: Path | None = None
    """A PNG to draw, of the results' thumbnails."""
    model: str | None = None
    """Where the checkpoint of the index is now, if it has moved."""

    def __post_init__(self) -> None:
        check_at_least("top", self.top, 1)
        check_at_least("candidates", self.candidates, 1)
        if (self.text is None) == (self.like is None):
            raise ConfigError("give text or like, a video; not both")
