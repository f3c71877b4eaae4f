"""DiscoVLA's frame-level similarity without the A·B·F·G cosines, forward and backward.

With S the cosines of captions t of text a and frames v of video b: max_v S for each caption, max_t
S for each frame, each pooled by Σ x·softmax(scale·x). Captions are visited a few per text at a
time, with running maxima for the frames and a running softmax for the captions, so that a tile of S
lives in registers only.

Forward (forward.py) is one matrix product. Backward (backward.py) computes the cosines once more,
this time writing down for each caption and frame its gradient and where its maximum was,
A·B·(F + G)·5 bytes for a bounded number of texts at a time; two more products multiply the cosines'
gradient, spread out in registers from that, with frames and with captions. Four products of
A·B·F·G·D multiply-adds in all, and A·B numbers kept besides the inputs. Equal cosines: the first is
the maximum, as in PyTorch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from garevla.kernels.frames.backward import alignment_backward
from garevla.kernels.frames.forward import alignment_forward, check_alignment
from garevla.ops.derivatives import first_derivative_only


def frame_alignment(
    captions: Tensor,
    frames: Tensor,
    logit_scale: Tensor | float,
    caption_mask: Tensor | None = None,
    frame_mask: Tensor | None = None,
    precision: str = "float32",
) -> Tensor:
    """As :func:`garevla.discovla.similarity.frame_level_similarity`, of features of length 1.

    Bit for bit repeatable; O(A·B) memory beside features.

    Args:
        captions: (A, F, D) float32 of length 1, finite where padded.
        frames: (B, G, D), likewise.
        logit_scale: the factor itself, 0-d or a number.
        caption_mask: (A, F) bool; ``None`` means all are valid.
        frame_mask: (B, G), likewise.
        precision: of the matrix products: float32, tf32x3, tf32 or bfloat16.

    Returns:
        (A, B) float32.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape, device or value.
    """
    caption_mask, frame_mask = (
        torch.ones(features.shape[:2], dtype=torch.bool, device=features.device)
        if mask is None
        else mask
        for features, mask in ((captions, caption_mask), (frames, frame_mask))
    )
    scale = torch.as_tensor(logit_scale, dtype=torch.float32, device=frames.device)
    return torch.ops.garevla_triton.frame_alignment(
        captions, frames, caption_mask, frame_mask, scale, precision
    )[0]


_frame_alignment = torch.library.custom_op(
    "garevla_triton::frame_alignment", alignment_forward, mutates_args=()
)
_frame_alignment_backward = torch.library.custom_op(
    "garevla_triton::frame_alignment_backward", alignment_backward, mutates_args=()
)


@_frame_alignment.register_fake
def _(captions: Tensor, frames: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor]:
    check_alignment(captions, frames, *others)
    shape = captions.shape[0], frames.shape[0]
    return captions.new_empty(shape), captions.new_empty(shape), captions.new_empty(shape)


@_frame_alignment_backward.register_fake
def _(captions: Tensor, frames: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor]:
    # Contiguous, whatever the inputs are.
    shapes = captions.shape, frames.shape, ()
    gradients = [captions.new_empty(shape) for shape in shapes]
    return gradients[0], gradients[1], gradients[2]


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.precision = inputs
    _, log_mass, pooled = output
    ctx.mark_non_differentiable(log_mass, pooled)
    ctx.save_for_backward(*tensors, log_mass, pooled)


def _backward(ctx: Any, grad_similarity: Tensor, *_: Any) -> tuple[Any, ...]:
    first_derivative_only("the triton backend")
    *tensors, log_mass, pooled = ctx.saved_tensors
    captions, frames, scale = torch.ops.garevla_triton.frame_alignment_backward(
        *tensors, ctx.precision, log_mass, pooled, grad_similarity
    )
    return captions, frames, None, None, scale, None


_frame_alignment.register_autograd(_backward, setup_context=_save)
