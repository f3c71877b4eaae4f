"""Similarity of all pairs, and their coefficients and increment norms where they are wanted."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from garevla.kernels.configs import LaunchConfig
from garevla.kernels.pairs.arguments import PairArguments
from garevla.kernels.pairs.arithmetic import pair_forward, products, tile_products
from garevla.kernels.pairs.grid import launch_pairs, pair_grid
from garevla.kernels.pairs.tile import columns_of, recount, tile_texts, tile_videos, videos_of
from garevla.kernels.pairs.tuning import tuned


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
    move (docs/kernels.md).
    """
    BASIS: tl.constexpr = TILE.HEADS * TILE.FRAMES + 2
    group_start = tl.program_id(0).to(tl.int64) * (TILE.VIDEOS * TILE.GROUP)
    segment_start = tl.program_id(1).to(tl.int64) * segment_length
    videos_left = (num_videos - group_start).to(tl.int32)
    texts = tl.arange(0, TILE.BLOCK_A)[:, None]
    segment_end = min(segment_start + segment_length, num_texts)
    for tile_start in range(segment_start, segment_end, TILE.BLOCK_A):
        tile_text = tile_texts(text, tile_start, TILE)
        texts_left = (num_texts - tile_start).to(tl.int32)
        videos_here = recount(videos_left, texts_left)
        group = tile_videos(video, group_start, TILE)
        dot = products(tile_text, group, texts_left, videos_here, TILE)
        for n in tl.static_range(TILE.GROUP):
            first = group_start + n * TILE.VIDEOS
            here = videos_here - n * TILE.VIDEOS
            slot, exists = videos_of(here, TILE)
            of_basis, k, basis_exists = columns_of(here, TILE.K_PAD, TILE)
            tile = tile_videos(video, first, TILE)
            of_tile = tile_products(dot, n, TILE)
            pairs = pair_forward(tile_text, tile, texts_left, here, of_tile, TILE)
            at = slot[None, :].to(tl.int64) * num_texts + texts
            first_pair = first * num_texts + tile_start
            inside = (texts < texts_left) & exists[None, :]
            tl.store(similarity + first_pair + at, pairs.similarity, mask=inside)
            if increment_norm is not None:
                tl.store(increment_norm + first_pair + at, pairs.increment_norm, mask=inside)
            if coefficients is not None:
                at = (of_basis * BASIS + k)[None, :].to(tl.int64) * num_texts + texts
                first_coefficient = first * BASIS * num_texts + tile_start
                inside = (texts < texts_left) & (basis_exists & (k < BASIS))[None, :]
                tl.store(coefficients + first_coefficient + at, pairs.coefficients, mask=inside)


def pair_scores(
    arguments: PairArguments, *, with_terms: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Similarity (B, A); with terms coefficients (B, K, A) and increment norms (B, A) too."""
    videos, texts = arguments.num_videos, arguments.num_texts
    similarity = arguments.empty(videos, texts)
    coefficients = arguments.empty(videos, arguments.basis, texts) if with_terms else None
    norm = arguments.empty(videos, texts) if with_terms else None

    def run(config: LaunchConfig) -> None:
        launch_pairs(
            pair_scores_kernel,
            arguments,
            config,
            pair_grid(videos, texts, config),
            num_videos=videos,
            similarity=similarity,
            coefficients=coefficients,
            increment_norm=norm,
        )

    # With the terms a tile takes as many registers as one of the statistics.
    kernel = "statistics" if with_terms else "scores"
    run(tuned(arguments, kernel, run, key=f"pair_scores {with_terms}"))
    return similarity, coefficients, norm
