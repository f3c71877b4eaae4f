"""Checks of what users pass in: every message names the argument and the expected shape."""

from __future__ import annotations

import torch
from torch import Tensor


def check_features(text_features: Tensor, frame_features: Tensor, dim: int) -> None:
    """Check text features (A, D) and frame features (B, F, D) against each other and ψ's D.

    Raises:
        TypeError: not a floating-point tensor, or one on device meta.
        ValueError: wrong number of dimensions, D that differs, an empty axis, two devices.
    """
    for name, value in (("text_features", text_features), ("frame_features", frame_features)):
        _require_floating(name, value)
    if text_features.dim() != 2:
        raise ValueError(
            f"text_features must have shape (A, D), got {tuple(text_features.shape)}; "
            "one feature per text, not per token"
        )
    check_frame_features(frame_features, dim)
    if text_features.shape[1] != dim:
        raise ValueError(
            f"text_features must have shape (A, {dim}) to fit psi, got {tuple(text_features.shape)}"
        )
    if text_features.shape[0] == 0:
        raise ValueError("text_features holds no text: shape (0, D)")
    if text_features.device != frame_features.device:
        raise ValueError(
            f"text_features is on {text_features.device}, frame_features on "
            f"{frame_features.device}; they must share a device"
        )


def check_frame_features(frame_features: Tensor, dim: int) -> None:
    """Check frame features (B, F, D) alone; errors as in :func:`check_features`."""
    _require_floating("frame_features", frame_features)
    if frame_features.dim() != 3:
        raise ValueError(
            f"frame_features must have shape (B, F, D), got {tuple(frame_features.shape)}; "
            "one feature per frame, before any pooling"
        )
    if frame_features.shape[2] != dim:
        raise ValueError(
            f"frame_features must have shape (B, F, {dim}) to fit psi, "
            f"got {tuple(frame_features.shape)}"
        )
    if 0 in frame_features.shape:
        raise ValueError(f"frame_features is empty: shape {tuple(frame_features.shape)}")
    if frame_features.is_meta:
        raise TypeError("frame_features must hold numbers, got a tensor on device meta")


def as_frame_mask(frame_mask: Tensor | None, frame_features: Tensor) -> Tensor:
    """Return the mask (B, F) as bool, all true where none was given.

    On a CPU the values are checked here. On a GPU that would stall the stream, so the check is
    made on the device and a failure surfaces at the next synchronisation.

    Raises:
        TypeError: complex or not a tensor.
        ValueError: wrong shape or device, values other than 0 and 1, a video with no valid frame.
    """
    batch, frames, _ = frame_features.shape
    if frame_mask is None:
        return torch.ones(batch, frames, dtype=torch.bool, device=frame_features.device)
    if not isinstance(frame_mask, Tensor) or frame_mask.is_complex():
        raise TypeError("frame_mask must be a bool, integer or floating-point tensor")
    if frame_mask.shape != (batch, frames):
        raise ValueError(
            f"frame_mask must have shape (B, F) = ({batch}, {frames}), "
            f"got {tuple(frame_mask.shape)}"
        )
    if frame_mask.device != frame_features.device:
        raise ValueError(
            f"frame_mask is on {frame_mask.device}, frame_features on {frame_features.device}"
        )
    mask = frame_mask != 0
    _check_mask_values(frame_mask, mask)
    return mask


def _check_mask_values(given: Tensor, mask: Tensor) -> None:
    if torch.compiler.is_compiling():
        return
    if mask.device.type != "cpu":
        torch._assert_async(mask.any(dim=1).all(), "frame_mask has a video with no valid frame")
        return
    if given.dtype != torch.bool and bool(((given != 0) & (given != 1)).any()):
        raise ValueError("frame_mask must hold only 0 (padding) and 1 (valid frame)")
    without_frames = (~mask.any(dim=1)).nonzero().flatten().tolist()
    if without_frames:
        raise ValueError(
            f"frame_mask has {len(without_frames)} video(s) with no valid frame, "
            f"at batch positions {without_frames[:10]}; drop them before scoring"
        )


def _require_floating(name: str, value: Tensor) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")
    if not value.is_floating_point():
        raise TypeError(f"{name} must be a floating-point tensor, got {value.dtype}")


def check_positive(name: str, value: float) -> None:
    """Raise ValueError unless ``value`` is a finite number above zero."""
    if not 0.0 < value < float("inf"):
        raise ValueError(f"{name} must be a positive finite number, got {value}")
