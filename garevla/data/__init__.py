"""Video and caption data: reading, checking, batching, and a synthetic data set.

Names are imported on first use, so that ``import garevla.data`` needs nothing but torch.
"""

from __future__ import annotations

import importlib
from typing import Any

_MODULE_OF = {
    "Sampling": "frame_sampling",
    "frame_indices": "frame_sampling",
    "VideoError": "video_errors",
    "read_frames": "video",
    "AnnotationError": "splits",
    "Caption": "splits",
    "RetrievalSplit": "splits",
    "Layout": "layouts",
    "layout": "layouts",
    "register_layout": "layouts",
    "load_msrvtt": "layouts.msrvtt",
    "BadVideo": "check",
    "BadVideosError": "check",
    "CheckReport": "check",
    "check_split": "check",
    "check_videos": "check",
    "load_split": "check",
    "PseudoCaptionError": "pseudo_captions",
    "PseudoCaptions": "pseudo_captions",
    "CaptionConfig": "captioning",
    "CaptioningError": "captioning",
    "caption_videos": "captioning",
    "Batch": "dataset",
    "VideoDataset": "dataset",
    "VideoTextDataset": "dataset",
    "collate_pairs": "dataset",
    "VideoTransform": "dataset",
    "UniqueVideoBatchSampler": "sampler",
    "SyntheticConfig": "synthetic",
    "generate_dataset": "synthetic",
}

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
