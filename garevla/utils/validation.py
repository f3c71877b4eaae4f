"""Checks of what users pass in: every message names the argument and the expected shape."""

from __future__ import annotations

import math
from numbers import Real

import torch
from torch import Tensor, nn

from garevla.utils.once import warn_once

# CLIP clamps its scale at 100; its logarithm begins at 2.66.
_LOG_SCALES = 2.0, math.log(100.0) + 1e-3


def check_features(text_features: Tensor, frame_features: Tensor, dim: int) -> None:
    """Check text features (A, D) and frame features (B, F, D) against each other and ψ's D.

    Raises:
        TypeError: not a floating-point tensor, or one on device meta.
        ValueError: wrong number of dimensions, D that differs, an empty axis, two devices.
    """
    check_frame_features(frame_features, dim)
    check_text_features(text_features, dim, frame_features.device, "frame_features")


def check_text_features(text_features: Tensor, dim: int, device: torch.device, other: str) -> None:
    """Check text features (A, D) alone, and their device against that of ``other``; errors as in
    :func:`check_features`."""
    _require_floating("text_features", text_features)
    if text_features.dim() != 2:
        raise ValueError(
            f"text_features must have shape (A, D), got {tuple(text_features.shape)}; "
            "one feature per text, not per token. Several captions of each video, (B, C, D): "
            "text_features.flatten(0, 1), and for a loss "
            "targets=torch.arange(B).repeat_interleave(C)"
        )
    if text_features.shape[1] != dim:
        raise ValueError(
            f"text_features must have shape (A, {dim}) to fit psi, got {tuple(text_features.shape)}"
        )
    if text_features.shape[0] == 0:
        raise ValueError("text_features holds no text: shape (0, D)")
    if text_features.device != device:
        raise ValueError(
            f"text_features is on {text_features.device}, {other} on {device}; "
            "they must share a device"
        )


def check_psi(psi: object) -> None:
    """Check that an argument is an increment network, or a wrapper that passes for one.

    Raises:
        TypeError: it is a tensor, or another module.
    """
    if isinstance(psi, Tensor):
        raise TypeError(
            "psi must be an increment network such as garevla.CrossAttentionPsi, got a tensor; the "
            "order is text_features, frame_features, psi, frame_mask"
        )
    if isinstance(psi, type) or not callable(getattr(psi, "encode_videos", None)):
        kind = psi if isinstance(psi, type) else type(psi)
        raise TypeError(
            "psi must be an increment network such as garevla.CrossAttentionPsi(dim), got "
            f"{'the class ' if psi is kind else ''}{kind.__module__}.{kind.__qualname__}. Of the "
            "published Psi, load_official_state_dict(psi.state_dict()) takes the weights; of "
            "DistributedDataParallel, the network is .module"
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


def check_words(word_features: Tensor, device: torch.device) -> None:
    """Check word features (A, W, D), whose shape fits the texts', and their device.

    Raises:
        TypeError: not a floating-point tensor.
        ValueError: no words; another device than ``frame_features``'s.
    """
    _require_floating("word_features", word_features)
    if 0 in word_features.shape:
        raise ValueError(f"word_features is empty: shape {tuple(word_features.shape)}")
    if word_features.device != device:
        raise ValueError(
            f"word_features is on {word_features.device}, frame_features on {device}; they must "
            "share a device"
        )


def as_frame_mask(
    frame_mask: Tensor | None, frame_features: Tensor, *, wait: bool = False, kind: str = "frame"
) -> Tensor:
    """Return the mask (B, F) as bool, all true where none was given.

    On a CPU the values are checked here. On a GPU that would stall the stream, so the check is
    made on the device and a failure surfaces at the next synchronisation.

    Args:
        frame_mask: bool, integer or floating point, 1 or True for a valid frame.
        frame_features: (B, F, …), of which the shape and the device are read.
        wait: check the values here on a GPU, too.
        kind: ``"word"`` where the mask is one of the words (A, W) of texts.

    Raises:
        TypeError: complex or not a tensor.
        ValueError: wrong shape or device, values other than 0 and 1, a video with no valid frame.
    """
    batch, frames = frame_features.shape[:2]
    shape = "(B, F)" if kind == "frame" else "(A, W)"
    if frame_mask is None:
        return torch.ones(batch, frames, dtype=torch.bool, device=frame_features.device)
    if not isinstance(frame_mask, Tensor) or frame_mask.is_complex():
        raise TypeError(
            f"{kind}_mask must be a bool, integer or floating-point tensor, got "
            f"{frame_mask.dtype if isinstance(frame_mask, Tensor) else type(frame_mask).__name__}"
        )
    if frame_mask.shape != (batch, frames):
        raise ValueError(
            f"{kind}_mask must have shape {shape} = ({batch}, {frames}), "
            f"got {tuple(frame_mask.shape)}"
        )
    if frame_mask.device != frame_features.device:
        raise ValueError(
            f"{kind}_mask is on {frame_mask.device}, the features on {frame_features.device}"
        )
    mask = frame_mask != 0
    _check_mask_values(frame_mask, mask, wait, kind)
    return mask


def _check_mask_values(given: Tensor, mask: Tensor, wait: bool, kind: str) -> None:
    if torch.compiler.is_compiling():
        return
    owner = "video" if kind == "frame" else "text"
    if mask.device.type != "cpu" and not wait:
        torch._assert_async(
            mask.any(dim=1).all(), f"{kind}_mask has a {owner} with no valid {kind}"
        )
        return
    if given.dtype != torch.bool and bool(((given != 0) & (given != 1)).any()):
        raise ValueError(f"{kind}_mask must hold only 0 (padding) and 1 (valid {kind})")
    without_frames = (~mask.any(dim=1)).nonzero().flatten().tolist()
    if without_frames:
        raise ValueError(
            f"{kind}_mask has {len(without_frames)} {owner}(s) with no valid {kind}, "
            f"at batch positions {without_frames[:10]}; drop them before scoring"
        )


def _require_floating(name: str, value: Tensor) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")
    if not value.is_floating_point():
        raise TypeError(f"{name} must be a floating-point tensor, got {value.dtype}")


def as_logit_scale(logit_scale: Tensor | float) -> Tensor | float:
    """Return the factor on the similarities, one positive number, 0-d where it is a tensor.

    Numbers and tensors on a CPU are looked at; the host waits for no GPU. What is likely to be
    CLIP's learnt logarithm is warned of once.

    Raises:
        TypeError: neither a number nor a real tensor.
        ValueError: not one number, or one that is not positive and finite.
    """
    is_parameter = isinstance(logit_scale, nn.Parameter)
    if isinstance(logit_scale, Tensor):
        if logit_scale.is_complex() or logit_scale.dtype == torch.bool:
            raise TypeError(f"logit_scale must be a real number, got {logit_scale.dtype}")
        if logit_scale.numel() != 1:
            raise ValueError(
                f"logit_scale must be one number, got shape {tuple(logit_scale.shape)}"
            )
        logit_scale = logit_scale.reshape(())
    elif isinstance(logit_scale, bool) or not isinstance(logit_scale, Real):
        raise TypeError(
            f"logit_scale must be a number or a 0-d tensor, got {type(logit_scale).__name__}"
        )
    if not torch.compiler.is_compiling():
        _look_at_scale(logit_scale, is_parameter)
    return logit_scale


def _look_at_scale(logit_scale: Tensor | float, is_parameter: bool) -> None:
    if isinstance(logit_scale, Tensor) and not _is_at_hand(logit_scale):
        # Who learns a scale learns its logarithm.
        suspect, shown = is_parameter, "a parameter"
    else:
        value = float(logit_scale.detach() if isinstance(logit_scale, Tensor) else logit_scale)
        if not 0.0 < value < float("inf"):
            raise ValueError(f"logit_scale must be positive and finite, got {value}")
        suspect, shown = _LOG_SCALES[0] <= value <= _LOG_SCALES[1], f"{value:.4g}"
    if suspect:
        warn_once(
            "log scale",
            f"logit_scale is to be the factor itself; {shown} may be its logarithm, which is what "
            "CLIP learns: then pass logit_scale.exp()",
        )


def _is_at_hand(x: Tensor) -> bool:
    """Whether its numbers can be read without waiting for a device."""
    return x.device.type == "cpu" and type(x) in (Tensor, nn.Parameter)


def check_positive(name: str, value: float) -> None:
    """Raise ValueError unless ``value`` is a finite number above zero."""
    if not 0.0 < value < float("inf"):
        raise ValueError(f"{name} must be a positive finite number, got {value}")
