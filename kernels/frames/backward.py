"""Frame alignment backward: the maxima once more, then the gradients from them alone."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from garevla.kernels import configs
from garevla.kernels.configs import ALIGNMENT_GRADIENT, ALIGNMENT_MAXIMA
from garevla.kernels.frames.constants import (
    Features,
    Maxima,
    cosine_constants,
    product_constants,
)
from garevla.kernels.frames.cosines import (
    OUTSIDE,
    cosines,
    empty_pool,
    load_mask,
    pool,
    tile_of_pairs,
)
from garevla.kernels.launching import launch
from garevla.kernels.operands import as_bytes, as_operand, load_operand
from garevla.kernels.rounding import rounded_product


# Sizes of the batch are not specialized: another size is no reason to compile again.
@triton.jit(do_not_specialize=["num_texts", "num_videos"])
def frame_alignment_maxima_kernel(
    features,  # Features
    logit_scale,  # () float32
    log_mass,  # (A, B) float32, as frame_alignment_kernel left it
    pooled,  # (A, B) float32, likewise
    grad_similarity,  # (A, B) float32
    maxima,  # Maxima, out
    scale_gradient,  # (programs, TEXTS) float32, out
    num_texts,
    num_videos,
    TILE: tl.constexpr,
):
    """Where the maxima of a tile are, and their gradients. Program (tile of texts and videos).

    The product of frame_alignment_kernel again; 5·A·B·(F + G) bytes written besides. A = B = 1024,
    F = G = 12, D = 512 on an H200: 0.26 ms of tensor cores (790 TFLOP/s), 0.04 ms of memory (4.3
    TB/s), so that only for D < 60 writing is the bound. A 64×64 tile reads 256·D bytes from L2 for
    8,192·D operations, 32 a byte: L2 is the bound unless it delivers 25 TB/s.
    """
    text, video = tile_of_pairs(num_texts, num_videos, TILE)
    texts, videos = text + tl.arange(0, TILE.TEXTS), video + tl.arange(0, TILE.VIDEOS)
    scale = tl.load(logit_scale)
    sign = tl.where(scale < 0, -1.0, 1.0)
    frame_slots = tl.arange(0, TILE.FRAMES)
    frame_valid = load_mask(features.frame_mask, videos, num_videos, frame_slots, TILE.G)
    inside = (texts < num_texts)[:, None] & (videos < num_videos)[None, :]
    pair = texts.to(tl.int64)[:, None] * num_videos + videos[None, :]
    # Half for each of the two directions.
    grad = 0.5 * tl.load(grad_similarity + pair, mask=inside, other=0.0)
    pair_log_mass = tl.load(log_mass + pair, mask=inside, other=0.0)
    pair_pooled = tl.load(pooled + pair, mask=inside, other=0.0)
    best_caption = tl.full([TILE.TEXTS, TILE.VIDEOS, TILE.FRAMES], OUTSIDE, tl.float32)
    best_index = tl.full([TILE.TEXTS, TILE.VIDEOS, TILE.FRAMES], 0, tl.int32)
    variance = tl.full([TILE.TEXTS, TILE.VIDEOS], 0.0, tl.float32)
    for caption in range(0, TILE.F, TILE.CAPTIONS):
        cosine = cosines(features, text, caption, video, num_texts, num_videos, TILE)
        slots = caption + tl.arange(0, TILE.CAPTIONS)
        valid = load_mask(features.caption_mask, texts, num_texts, slots, TILE.F)[:, :, None]
        best, index = tl.max(
            tl.where(valid[:, :, :, None], cosine, OUTSIDE), axis=1, return_indices=True
        )
        # Not on equality: the first of several maxima.
        best_index = tl.where(best > best_caption, caption + index, best_index)
        best_caption = tl.maximum(best_caption, best)
        best, index = tl.max(
            tl.where(frame_valid[None, None, :, :], cosine, OUTSIDE), axis=3, return_indices=True
        )
        weight = tl.where(valid, tl.exp(scale * best - pair_log_mass[:, None, :]), 0.0)
        offset = best - pair_pooled[:, None, :]
        variance += tl.sum(rounded_product(weight * offset, offset), axis=1)
        gradient = grad[:, None, :] * weight * (1.0 + scale * offset)
        at = (texts.to(tl.int64)[:, None] * TILE.F + slots[None, :])[:, :, None] * num_videos
        at += videos[None, None, :]
        exists = inside[:, None, :] & (slots < TILE.F)[None, :, None]
        _store_maxima(maxima.frame_gradient, maxima.frame_index, at, exists, gradient, index)
    valid = frame_valid[None, :, :]
    reference, mass, moment = empty_pool(sign, TILE)
    reference, mass, moment = pool(best_caption, valid, scale, sign, reference, mass, moment, 2)
    offset = tl.where(valid, best_caption - reference[:, :, None], 0.0)
    weight = tl.where(valid, tl.exp(scale * offset) / mass[:, :, None], 0.0)
    offset -= (moment / mass)[:, :, None]
    variance += tl.sum(rounded_product(weight * offset, offset), axis=2)
    gradient = grad[:, :, None] * weight * (1.0 + scale * offset)
    at = pair[:, :, None] * TILE.G + frame_slots[None, None, :]
    exists = inside[:, :, None] & (frame_slots < TILE.G)[None, None, :]
    _store_maxima(maxima.caption_gradient, maxima.caption_index, at, exists, gradient, best_index)
    # Over the videos alone: Triton 3.6 and 3.9 fail to compile sums over both for some layouts.
    of_text = tl.sum(tl.where(inside, rounded_product(grad, variance), 0.0), axis=1)
    at = tl.program_id(0).to(tl.int64) * TILE.TEXTS + tl.arange(0, TILE.TEXTS)
    tl.store(scale_gradient + at, of_text)


@triton.jit
def _store_maxima(gradients, indices, at, inside, gradient, index):
    tl.store(gradients + at, gradient, mask=inside)
    tl.store(indices + at, index.to(indices.dtype.element_ty), mask=inside)


@triton.jit
def _where_maximal(gradients, indices, at, inside, index):
    """Gradients where the maximum is the one with this index, else 0."""
    maximal = tl.load(indices + at, mask=inside, other=-1).to(tl.int32) == index
    return tl.where(maximal, tl.load(gradients + at, mask=inside, other=0.0), 0.0)


@triton.jit
def _cosine_gradient(
    maxima,  # Maxima
    rows,  # (R,) captions of all texts
    columns,  # (C,) frames of all videos
    num_texts,
    num_videos,
    TILE: tl.constexpr,
):
    """Tile (R, C) of the cosines' gradient: two entries a row and video, or column and text."""
    inside = (rows < num_texts * TILE.F)[:, None] & (columns < num_videos * TILE.G)[None, :]
    at = rows.to(tl.int64)[:, None] * num_videos + (columns // TILE.G)[None, :]
    frame = (columns % TILE.G)[None, :]
    of_frame = _where_maximal(maxima.frame_gradient, maxima.frame_index, at, inside, frame)
    at = (rows // TILE.F).to(tl.int64)[:, None] * num_videos * TILE.G + columns[None, :]
    caption = (rows % TILE.F)[:, None]
    of_caption = _where_maximal(maxima.caption_gradient, maxima.caption_index, at, inside, caption)
    return of_frame + of_caption


@triton.jit(do_not_specialize=["num_texts", "num_videos"])
def frame_alignment_captions_kernel(
    maxima,  # Maxima
    frames,  # (B, G, DIM) operands
    gradient,  # (A, F, DIM) float32, out
    num_texts,
    num_videos,
    TILE: tl.constexpr,
):
    """Gradient of the captions. Program (tile of captions, part of the features).

    A·F·B·G·D multiply-adds without padding; 5·A·B·(F + G) bytes of maxima read from memory for each
    part of the features, and 4·A·F·D written. A = B = 1024, F = G = 12, D = 512 on an H200: 0.2 ms
    of tensor cores (790 TFLOP/s), 0.07 ms of memory (4.3 TB/s). Frames come from L2, 32 KB for 2.1
    million operations, 64 a byte. An entry of the cosines' gradient takes four loads, from L1
    mostly, for the OUTPUT multiply-adds that it serves: about the tensor cores' time again.
    """
    rows = tl.program_id(0) * TILE.ROWS + tl.arange(0, TILE.ROWS)
    d = tl.program_id(1) * TILE.OUTPUT + tl.arange(0, TILE.OUTPUT)
    num_columns = num_videos * TILE.G
    total = tl.full([TILE.ROWS, TILE.OUTPUT], 0.0, tl.float32)
    for start in range(0, num_columns, TILE.COLUMNS):
        columns = start + tl.arange(0, TILE.COLUMNS)
        weight = _cosine_gradient(maxima, rows, columns, num_texts, num_videos, TILE)
        other = load_operand(frames, columns, columns < num_columns, TILE.DIM, d, TILE.DIM)
        total = tl.dot(weight.to(other.dtype), other, total, input_precision=TILE.PRECISION)
    at = rows.to(tl.int64)[:, None] * TILE.DIM + d[None, :]
    inside = (rows < num_texts * TILE.F)[:, None] & (d < TILE.DIM)[None, :]
    tl.store(gradient + at, total, mask=inside)


@triton.jit(do_not_specialize=["num_texts", "num_videos"])
def frame_alignment_frames_kernel(
    maxima,  # Maxima
    captions,  # (A, F, DIM) operands
    gradient,  # (B, G, DIM) float32, added to
    num_texts,
    num_videos,
    TILE: tl.constexpr,
):
    """Gradient of the frames, on top of that of other texts.

    Program (tile of frames, part of the features). Costs as in the captions' kernel; the
    4·B·G·D bytes of the gradient are read besides, once for each chunk of texts.
    """
    columns = tl.program_id(0) * TILE.ROWS + tl.arange(0, TILE.ROWS)
    d = tl.program_id(1) * TILE.OUTPUT + tl.arange(0, TILE.OUTPUT)
    num_rows = num_texts * TILE.F
    at = columns.to(tl.int64)[:, None] * TILE.DIM + d[None, :]
    inside = (columns < num_videos * TILE.G)[:, None] & (d < TILE.DIM)[None, :]
    total = tl.load(gradient + at, mask=inside, other=0.0)
    for start in range(0, num_rows, TILE.COLUMNS):
        rows = start + tl.arange(0, TILE.COLUMNS)
        weight = _cosine_gradient(maxima, rows, columns, num_texts, num_videos, TILE)
        other = load_operand(captions, rows, rows < num_rows, TILE.DIM, d, TILE.DIM)
        weight = tl.trans(weight.to(other.dtype))
        total = tl.dot(weight, other, total, input_precision=TILE.PRECISION)
    tl.store(gradient + at, total, mask=inside)


def alignment_backward(
    captions: Tensor,
    frames: Tensor,
    caption_mask: Tensor,
    frame_mask: Tensor,
    logit_scale: Tensor,
    precision: str,
    log_mass: Tensor,
    pooled: Tensor,
    grad_similarity: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # (A, F, D), (B, G, D), ()
    """Gradients of captions, frames and scale."""
    (num_texts, num_captions, dim), (num_videos, num_frames, _) = captions.shape, frames.shape
    captions, frames = as_operand(captions, precision), as_operand(frames, precision)
    caption_mask, frame_mask = as_bytes(caption_mask), as_bytes(frame_mask)
    grad_similarity = grad_similarity.contiguous()
    options = {"dtype": torch.float32, "device": captions.device}
    caption_gradient = torch.empty(captions.shape, **options)
    frame_gradient = torch.zeros(frames.shape, **options)
    scale_gradient = torch.zeros((), **options)
    config = ALIGNMENT_GRADIENT[precision]
    constants = product_constants(config, num_captions, num_frames, dim, precision)
    parts = triton.cdiv(dim, constants.OUTPUT)
    step = _texts_at_a_time(num_videos * (num_captions + num_frames))
    for start in range(0, num_texts, step):
        chunk = slice(start, min(start + step, num_texts))
        features = Features(captions[chunk], frames, caption_mask[chunk], frame_mask)
        of_pairs = (x[chunk] for x in (log_mass, pooled, grad_similarity))
        maxima, partial = _maxima(features, logit_scale, *of_pairs, precision)
        scale_gradient += partial.sum()
        shared = {
            "maxima": maxima,
            "num_texts": chunk.stop - start,
            "num_videos": num_videos,
            "TILE": constants,
            **config.options(),
        }
        launch(
            frame_alignment_captions_kernel,
            (triton.cdiv((chunk.stop - start) * num_captions, constants.ROWS), parts),
            frames=frames,
            gradient=caption_gradient[chunk],
            **shared,
        )
        launch(
            frame_alignment_frames_kernel,
            (triton.cdiv(num_videos * num_frames, constants.ROWS), parts),
            captions=captions[chunk],
            gradient=frame_gradient,
            **shared,
        )
    return caption_gradient, frame_gradient, scale_gradient


def _texts_at_a_time(maxima_of_text: int) -> int:
    step = max(1, configs.ALIGNMENT_MAXIMA_KEPT // maxima_of_text)
    # Chunks that begin where the whole does, modulo 16, are as aligned: compiled once.
    return step if step < 16 else step // 16 * 16


def _maxima(
    features: Features,
    logit_scale: Tensor,  # ()
    log_mass: Tensor,  # (A, B)
    pooled: Tensor,  # (A, B)
    grad_similarity: Tensor,  # (A, B)
    precision: str,
) -> tuple[Maxima, Tensor]:  # and the gradient of the scale, in parts
    (num_texts, num_captions, dim), (num_videos, num_frames, _) = (
        x.shape for x in (features.captions, features.frames)
    )
    config = ALIGNMENT_MAXIMA[precision]
    constants = cosine_constants(config, num_captions, num_frames, dim, precision)
    narrow = torch.int8 if max(num_captions, num_frames) <= 127 else torch.int16
    maxima = Maxima(
        *(
            log_mass.new_empty(shape, dtype=dtype)
            for shape in (
                (num_texts, num_captions, num_videos),
                (num_texts, num_videos, num_frames),
            )
            for dtype in (torch.float32, narrow)
        )
    )
    programs = triton.cdiv(num_texts, constants.TEXTS) * triton.cdiv(num_videos, constants.VIDEOS)
    scale_gradient = log_mass.new_empty(programs, constants.TEXTS)
    launch(
        frame_alignment_maxima_kernel,
        (programs,),
        features=features,
        logit_scale=logit_scale,
        log_mass=log_mass,
        pooled=pooled,
        grad_similarity=grad_similarity,
        maxima=maxima,
        scale_gradient=scale_gradient,
        num_texts=num_texts,
        num_videos=num_videos,
        TILE=constants,
        **config.options(),
    )
    return maxima, scale_gradient
