"""Similarity of all pairs, and their coefficients and increment norms where they are wanted."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from garevla.kernels.configs import TileConfig
from garevla.kernels.launching import launch
from garevla.kernels.pairs.arguments import PairArguments, segments, tuned
from garevla.kernels.pairs.arithmetic import (
    columns_of,
    pair_forward,
    products,
    recount,
    tile_texts,
    tile_videos,
    videos_of,
)


@triton.jit(do_not_specialize=["num_texts", "num_videos", "segment_length"])
def pair_scores_kernel(
    similarity,  # (B, A) out
    coefficients,  # (B, K, A) out, or None
    increment_norm,  # (B, A) out, or None
    text,  # Texts
    video,  # Videos
    num_texts,
    num_videos,
    segment_length,
    TILE,
):
    """A program scores a group of videos with one segment of the texts, tile by tile.

    Memory: 4 bytes a pair out; in R·D numbers a video and its Gram matrices. From the L2 cache
    D / VIDEOS + R·D / BLOCK_A operands a pair: texts once per group, rows once per tile. Per pair
    2·R·D operations in products (39 thousand at D = 512, F = 12; 49 thousand with the padding to
    16 columns) and 10·VIDEOS·K_PAD² in quadratic forms. On an H200 at A = B = 4096 in bfloat16 the
    tensor cores need 0.8 ms for the products, the cache 2.5 ms: the bound to meet, and then to
    move (docs/kernels.md). Not yet measured.

    Compiled for sm_90 at D = 512, F = 12 (shared memory, registers a thread; no spills): 56 KB, 232
    in bfloat16; 7 KB, 203 in float32.
    """
    first = tl.program_id(0).to(tl.int64) * TILE.VIDEOS
    start = tl.program_id(1).to(tl.int64) * segment_length
    own = tile_videos(video, first, TILE)
    videos_left = (num_videos - first).to(tl.int32)
    slot, exists = videos_of(videos_left, TILE)
    of_basis, k, basis_exists = columns_of(videos_left, TILE.K_PAD, TILE)
    BASIS: tl.constexpr = TILE.HEADS * TILE.FRAMES + 2
    texts = tl.arange(0, TILE.BLOCK_A)[:, None]
    for tile in range(start, min(start + segment_length, num_texts), TILE.BLOCK_A):
        tiled = tile_texts(text, tile, TILE)
        left = (num_texts - tile).to(tl.int32)
        videos_here = recount(videos_left, left)
        dot = products(tiled, own, left, videos_here, TILE)
        pairs = pair_forward(tiled, own, left, videos_here, dot, TILE)
        at = slot[None, :].to(tl.int64) * num_texts + texts
        here = first * num_texts + tile
        inside = (texts < left) & exists[None, :]
        tl.store(similarity + here + at, pairs.similarity, mask=inside)
        if increment_norm is not None:
            tl.store(increment_norm + here + at, pairs.increment_norm, mask=inside)
        if coefficients is not None:
            at = (of_basis * BASIS + k)[None, :].to(tl.int64) * num_texts + texts
            here = first * BASIS * num_texts + tile
            inside = (texts < left) & (basis_exists & (k < BASIS))[None, :]
            tl.store(coefficients + here + at, pairs.coefficients, mask=inside)


def pair_scores(
    arguments: PairArguments, *, with_terms: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Similarity (B, A); with terms coefficients (B, K, A) and increment norms (B, A) too."""
    videos, texts = arguments.num_videos, arguments.num_texts
    similarity = arguments.empty(videos, texts)
    coefficients = arguments.empty(videos, arguments.basis, texts) if with_terms else None
    norm = arguments.empty(videos, texts) if with_terms else None

    def run(config: TileConfig) -> None:
        count, length = segments(videos, texts, config)
        launch(
            pair_scores_kernel,
            (triton.cdiv(videos, config.videos), count),
            **config.options(),
            similarity=similarity,
            coefficients=coefficients,
            increment_norm=norm,
            text=arguments.texts,
            video=arguments.videos,
            num_texts=texts,
            num_videos=videos,
            segment_length=length,
            TILE=arguments.tile(config),
        )

    # With the terms a tile takes as many registers as one of the statistics.
    kernel = "statistics" if with_terms else "scores"
    run(tuned(arguments, kernel, run, key=f"pair_scores {with_terms}"))
    return similarity, coefficients, norm
