"""Similarity of all pairs, and their coefficients and increment norms where they are wanted."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from garevla.kernels.arguments import PairArguments, launch, segments, tuned
from garevla.kernels.arithmetic import score_tile
from garevla.kernels.configs import TileConfig


@triton.jit(do_not_specialize=["num_texts", "segment_length"])
def pair_scores_kernel(
    similarity,  # (B, A) out
    coefficients,  # (B, K, A) out, or None
    increment_norm,  # (B, A) out, or None
    text,  # (A, D)
    text_mean,  # (A)
    squared_norm,  # (A)
    rows,  # (B, R, D)
    frame_mask,  # (B, F)
    key_offset,  # (B, H·F)
    key_bias,  # (B, H·F)
    mean_frame,  # (B, D)
    value_gram,  # (B, H·F, H·F)
    hidden_gram,  # (B, H·F+1, H·F+1)
    basis_gram,  # (B, K, K)
    frame_gram,  # (B, F, F)
    basis_frame,  # (B, K, F)
    num_texts,
    segment_length,
    WITH_TERMS: tl.constexpr,
    DIM: tl.constexpr,
    HEADS: tl.constexpr,
    FRAMES: tl.constexpr,
    GAP_EPS: tl.constexpr,
    VALUE_EPS: tl.constexpr,
    HIDDEN_EPS: tl.constexpr,
    TEMPERATURE: tl.constexpr,
    TINY: tl.constexpr,
    BLOCK_A: tl.constexpr,
    BLOCK_D: tl.constexpr,
    K_PAD: tl.constexpr,
    F_PAD: tl.constexpr,
    PRODUCT_PRECISION: tl.constexpr,
    GRAM_PRECISION: tl.constexpr,
):
    """A program scores one video with one segment of the texts, tile by tile.

    Out 4 bytes a pair; in R·D numbers a video, its Gram matrices, and A·D of the texts, which come
    from the L2 cache again for every video. Per pair 2·R·D operations in products (39 thousand at
    D = 512, F = 12; 49 thousand with the padding to 16 columns), 3·D for the gap itself and some
    10·K². The bound to meet at A = B = 4096 is the tensor cores', 0.8 ms in bfloat16 at 790
    TFLOP/s; but the texts' 2 KB a pair make 34 GB, 6 ms at the 5 to 6 TB/s of an L2 cache: a tile
    of texts that serves several videos is the next step. Not yet measured on a GPU.

    Compiled for sm_90 at D = 512, F = 12: 5 KB of shared memory and 146 registers in float32, 18 KB
    and 212 in tf32x3, 30 KB and 164 in bfloat16; no spills.
    """
    video = tl.program_id(0).to(tl.int64)
    BASIS: tl.constexpr = HEADS * FRAMES + 2
    start = tl.program_id(1).to(tl.int64) * segment_length
    k = tl.arange(0, K_PAD)
    for first in range(start, min(start + segment_length, num_texts), BLOCK_A):
        texts = first + tl.arange(0, BLOCK_A).to(tl.int64)
        inside = texts < num_texts
        _, _, state = score_tile(
            texts,
            num_texts,
            video,
            text,
            text_mean,
            squared_norm,
            rows,
            frame_mask,
            key_offset,
            key_bias,
            mean_frame,
            value_gram,
            hidden_gram,
            basis_gram,
            frame_gram,
            basis_frame,
            DIM,
            HEADS,
            FRAMES,
            GAP_EPS,
            VALUE_EPS,
            HIDDEN_EPS,
            TEMPERATURE,
            TINY,
            BLOCK_A,
            BLOCK_D,
            K_PAD,
            F_PAD,
            PRODUCT_PRECISION,
            GRAM_PRECISION,
        )
        tl.store(similarity + video * num_texts + texts, state[0], mask=inside)
        if WITH_TERMS:
            tl.store(increment_norm + video * num_texts + texts, state[1], mask=inside)
            own = coefficients + video * BASIS * num_texts
            tl.store(
                own + k[None, :] * num_texts + texts[:, None],
                state[2],
                mask=inside[:, None] & (k < BASIS)[None, :],
            )


def pair_scores(
    arguments: PairArguments, *, with_terms: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Similarity (B, A); with terms coefficients (B, K, A) and increment norms (B, A) too."""
    videos, texts = arguments.num_videos, arguments.num_texts
    similarity = arguments.empty(videos, texts)
    coefficients = arguments.empty(videos, arguments.basis, texts) if with_terms else None
    norm = arguments.empty(videos, texts) if with_terms else None

    def run(config: TileConfig) -> None:
        count, length = segments(videos, texts, config.block_a)
        launch(
            pair_scores_kernel,
            (videos, count),
            config,
            similarity=similarity,
            coefficients=coefficients,
            increment_norm=norm,
            **arguments.operands(),
            segment_length=length,
            WITH_TERMS=with_terms,
            **arguments.constants(),
            BLOCK_A=config.block_a,
            BLOCK_D=config.block_d,
        )

    run(tuned(arguments, "forward", run, key=f"pair_scores {with_terms}"))
    return similarity, coefficients, norm
