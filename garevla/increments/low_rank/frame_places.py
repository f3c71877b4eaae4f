"""Where the frames that are worth computing stand among those of a batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

LEAST_PADDING = 1 / 16
"""Share of padded frames from which leaving them out of a product outweighs moving the others."""


@dataclass(frozen=True)
class FramePlaces:
    """The N frames that take part in products with weights, of B videos of F frames each.

    They are the valid ones on a CPU, where such products are most of the work when videos have
    many frames. Elsewhere they are all: counting the valid ones would wait for a GPU, and is not
    to be had under ``torch.compile``.
    """

    batch: int
    frames: int
    index: Tensor | None
    """(N,) int64, which of the B·F frames; None for all of them."""

    @classmethod
    def of(cls, frame_mask: Tensor) -> FramePlaces:
        """Of the frames (B, F) where a bool mask is true, or of all."""
        batch, frames = frame_mask.shape
        index = None
        if frame_mask.device.type == "cpu" and not torch.compiler.is_compiling():
            valid = frame_mask.flatten().nonzero().squeeze(1)
            if len(valid) <= (1 - LEAST_PADDING) * batch * frames:
                index = valid
        return cls(batch, frames, index)

    def rows(self, of_frames: Tensor) -> Tensor:
        """(B, F, D) -> (N, D)."""
        rows = of_frames.flatten(0, 1)
        return rows if self.index is None else rows.index_select(0, self.index)

    def of_videos(self, of_videos: Tensor) -> Tensor:
        """What belongs to a video, (B, 1, D), for each of its frames: (N, 1, D)."""
        return self.rows(of_videos.expand(-1, self.frames, -1)).unsqueeze(1)

    def videos(self, rows: Tensor) -> Tensor:
        """(N, …) -> (B, F, …), zeros for the frames left out."""
        if self.index is not None:
            everything = rows.new_zeros(self.batch * self.frames, *rows.shape[1:])
            rows = everything.index_copy(0, self.index, rows)
        return rows.unflatten(0, (self.batch, self.frames))

    def by_head(self, rows: Tensor) -> Tensor:
        """(N, H, D) -> (B, H·F, D)."""
        return self.videos(rows).transpose(1, 2).flatten(1, 2)
