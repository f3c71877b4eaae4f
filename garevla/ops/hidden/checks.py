"""Arguments of the operators that do not fit are named."""

from __future__ import annotations

import torch
from torch import Tensor

from garevla.ops.hidden.factors import FACTORS, HiddenPairs


def check_pairs(pairs: HiddenPairs) -> None:
    """Raise ValueError or TypeError unless the factors fit together."""
    kind, factors = pairs.layer.kind, pairs.factors
    text = factors["text"]
    sizes: dict[str, int] = {}
    for name, letters in FACTORS[kind].items():
        factor = factors[name]
        dtype = torch.bool if name == "frame_mask" else text.dtype
        if factor.dtype != dtype:
            raise TypeError(f"{name} must be {dtype}, got {factor.dtype}")
        if factor.device != text.device:
            raise ValueError(f"{name} is on {factor.device}, text on {text.device}")
        if factor.dim() == len(letters):
            for letter, size in zip(letters, factor.shape, strict=True):
                sizes.setdefault(letter, size)
            _derive(sizes)
        want = tuple(sizes.get(letter, -1) for letter in letters)
        if tuple(factor.shape) != want:
            raise ValueError(
                f"{name} must have shape ({', '.join(letters)}) = {want}, got {tuple(factor.shape)}"
            )
    if 0 in sizes.values():
        raise ValueError(f"factors must not be empty, got sizes {sizes}")
    if pairs.layer.dropout and pairs.seed is None:
        raise ValueError("dropout needs a seed")


def _derive(sizes: dict[str, int]) -> None:
    """Sizes that follow from others."""
    if "H" in sizes:
        sizes["S"] = 2 * sizes["H"]
    if "N" in sizes:
        sizes["K"] = sizes["N"] * sizes["F"]


def check_statistics(pairs: HiddenPairs, logit_scale: Tensor, targets: Tensor) -> None:
    """Raise ValueError or TypeError unless scale and targets fit the pairs."""
    if logit_scale.numel() != 1:
        raise ValueError(f"logit_scale must be one number, got {tuple(logit_scale.shape)}")
    if targets.dtype != torch.int64:
        raise TypeError(f"targets must be {torch.int64}, got {targets.dtype}")
    if targets.shape != (len(pairs.text),):
        raise ValueError(
            f"targets must have shape (A) = ({len(pairs.text)},), got {tuple(targets.shape)}"
        )
    for name, value in (("targets", targets), ("logit_scale", logit_scale)):
        if value.device != pairs.text.device:
            raise ValueError(f"{name} is on {value.device}, text on {pairs.text.device}")
    fits = ((targets >= 0) & (targets < len(pairs.factors["frames"]))).all()
    if targets.device.type != "cpu":
        # Does not wait for the device.
        torch._assert_async(fits, "targets must be indices of videos")
    elif not fits:
        raise IndexError(f"targets must be in [0, {len(pairs.factors['frames'])})")
