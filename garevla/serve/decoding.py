"""What a process that decodes clips to search with does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from garevla.data.dataset import FrameCrop
from garevla.data.frame_sampling import Sampling
from garevla.data.resizing import Resizing
from garevla.data.video import read_frames
from garevla.data.video_errors import VideoError

# Bytes that a process may take: frames are as large as a file says that they are.
_MOST_MEMORY = 6 << 30

# The other cores search.
torch.set_num_threads(1)


def decode(question: dict[str, Any], settings: None) -> dict[str, str | None]:
    """Write a clip's frames beside it, cropped for a model.

    Args:
        question: its ``path``; ``sampling`` and ``resizing`` of the model.
        settings: there are none.

    Returns:
        ``reason``: why it cannot be used, or None.
    """
    _limit_memory()
    path, sampling = Path(question["path"]), Sampling.from_settings(question["sampling"])
    crop = FrameCrop(Resizing(**question["resizing"]))
    try:
        frames = read_frames(path, sampling)
        np.save(frames_file(path), crop(frames).permute(0, 2, 3, 1).numpy())
    except VideoError as error:
        return {"reason": error.reason}
    except MemoryError:
        return {"reason": "its pictures are too large"}
    return {"reason": None}


def frames_file(clip: Path) -> Path:
    """Where :func:`decode` writes the frames (n, H, W, 3) uint8 of a clip."""
    return clip.with_name(f"{clip.name}.npy")


def _limit_memory() -> None:
    try:
        import resource
    except ImportError:  # Windows
        return
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    most = _MOST_MEMORY if hard == resource.RLIM_INFINITY else min(_MOST_MEMORY, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (most, hard))
