"""How a pair kernel's work is shared out among programs, and its launch."""

from __future__ import annotations

from typing import Any, NamedTuple

import triton

from garevla.kernels import configs
from garevla.kernels.configs import LaunchConfig
from garevla.kernels.launching import launch
from garevla.kernels.pairs.arguments import PairArguments, Texts


class PairGrid(NamedTuple):
    """A program for each group of videos and each segment of the texts."""

    groups: int
    segments: int
    segment_length: int  # texts: whole tiles


def pair_grid(num_videos: int, num_texts: int, config: LaunchConfig) -> PairGrid:
    """The grid for so many videos and texts."""
    tiles = triton.cdiv(num_texts, config.rows)
    groups = triton.cdiv(num_videos, config.columns * config.tiles)
    wanted = min(tiles, max(1, configs.PAIR_PROGRAMS // groups))
    length = triton.cdiv(tiles, wanted) * config.rows
    return PairGrid(groups, triton.cdiv(num_texts, length), length)


def launch_pairs(
    kernel: Any,
    arguments: PairArguments,
    config: LaunchConfig,
    grid: PairGrid,
    *,
    num_videos: int,
    texts: slice = slice(None),
    **others: Any,
) -> None:
    """Run a pair kernel.

    Args:
        num_videos: where the videos end that it works on.
        texts: those it works on.
        others: the kernel's own arguments.
    """
    if arguments.dim <= config.reduction:
        # A single step overlaps with nothing, and with more stages Triton 3.8 leaves out, on sm_90,
        # the fence between the step's copies and the products that read them.
        config = config._replace(num_stages=1)
    text = Texts(*(tensor[texts] for tensor in arguments.texts))
    launch(
        kernel,
        (grid.groups, grid.segments),
        **config.options(),
        text=text,
        video=arguments.videos,
        num_texts=len(text.features),
        num_videos=num_videos,
        segment_length=grid.segment_length,
        TILE=arguments.constants(config),
        **others,
    )
