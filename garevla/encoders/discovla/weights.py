"""Adapter files, and the names of the published implementation."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import safetensors
import safetensors.torch
from torch import Tensor

from garevla.utils.files import atomic_file
from garevla.utils.weights import bare_weights

if TYPE_CHECKING:
    from garevla.encoders.discovla.encoder import DiscoVLAEncoder

_FORMAT = "garevla-discovla-adapters-1"
# Tells apart models of one name with other pretrained weights.
_BASE_SAMPLE = "clip.visual.class_embedding"

_OFFICIAL_TOWERS = {
    "clip.visual.transformer.resblocks.": "vision_adapters.",
    "clip.transformer.resblocks.": "text_adapters.",
}
_OFFICIAL_PARAMETERS = {
    "attn.TVPt_LoRA_a": "lora.a",
    "attn.TVPt_LoRA_b": "lora.b",
    "attn.TVPt_down_weight": "fusion.down.weight",
    "attn.TVPt_down_bias": "fusion.down.bias",
    "attn.TVPt_up_weight": "fusion.up.weight",
    "attn.TVPt_up_bias": "fusion.up.bias",
}


class AdaptersError(RuntimeError):
    """An adapter file that cannot be read, or that belongs to another model."""


def from_official_name(name: str) -> str:
    """A parameter's name in :class:`DiscoVLAEncoder`, given its published name.

    Raises:
        ValueError: not a published name.
    """
    if "TVPt_" not in name and name.startswith("clip."):
        return name
    for official_tower, tower in _OFFICIAL_TOWERS.items():
        if name.startswith(official_tower):
            block, _, parameter = name.removeprefix(official_tower).partition(".")
            if parameter in _OFFICIAL_PARAMETERS:
                return f"{tower}{block}.{_OFFICIAL_PARAMETERS[parameter]}"
    raise ValueError(f"not a parameter name of the published DiscoVLA: {name!r}")


def load_official(encoder: DiscoVLAEncoder, state_dict: Mapping[str, Tensor]) -> None:
    """See :meth:`DiscoVLAEncoder.load_official_state_dict`."""
    _refuse_merged(encoder)
    weights = {from_official_name(name): value for name, value in bare_weights(state_dict).items()}
    has_clip = any(name.startswith("clip.") for name in weights)
    expected = encoder.state_dict() if has_clip else _adapter_state(encoder)
    expected = {name: value for name, value in expected.items() if not name.startswith("temporal.")}
    missing = sorted(expected.keys() - weights.keys())
    if missing:
        raise KeyError(f"published checkpoint lacks {len(missing)} weights: {_some(missing)}")
    problem = _misfit(expected, weights)
    if problem:
        raise ValueError(f"published checkpoint does not fit {encoder.base_model!r}: {problem}")
    encoder.load_state_dict(weights, strict=False)


def save_adapters(encoder: DiscoVLAEncoder, path: str | os.PathLike[str]) -> None:
    """See :meth:`DiscoVLAEncoder.save_adapters`."""
    _refuse_merged(encoder)
    tensors = _adapter_state(encoder)
    tensors[_BASE_SAMPLE] = encoder.get_parameter(_BASE_SAMPLE)
    content = safetensors.torch.save(
        {name: value.detach().cpu().contiguous() for name, value in tensors.items()},
        metadata={"format": _FORMAT, "base_model": encoder.base_model},
    )
    with atomic_file(path) as file:
        file.write(content)


def load_adapters(encoder: DiscoVLAEncoder, path: str | os.PathLike[str]) -> None:
    """See :meth:`DiscoVLAEncoder.load_adapters`."""
    _refuse_merged(encoder)
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"adapter file not found: {path}")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise AdaptersError(f"{path} is not a readable safetensors file: {error}") from error
    if metadata.get("format") != _FORMAT or _BASE_SAMPLE not in tensors:
        raise AdaptersError(f"{path} is not an adapter file of format {_FORMAT!r}")
    if metadata.get("base_model") != encoder.base_model:
        raise AdaptersError(
            f"{path} holds adapters of {metadata.get('base_model')!r}, this encoder is built on "
            f"{encoder.base_model!r}"
        )
    sample = tensors.pop(_BASE_SAMPLE).float()
    base_sample = encoder.get_parameter(_BASE_SAMPLE).detach().cpu().float()
    # Room for rounding to half precision, and no more.
    if sample.shape != base_sample.shape or (sample - base_sample).norm() > 0.01 * sample.norm():
        raise AdaptersError(
            f"{path} holds adapters of other pretrained weights of {encoder.base_model!r} than "
            "this encoder's"
        )
    expected = _adapter_state(encoder)
    problem = _misfit(expected, tensors)
    missing = sorted(expected.keys() - tensors.keys())
    if missing and not problem:
        problem = f"missing: {_some(missing)}"
    if problem:
        raise AdaptersError(
            f"{path} does not fit this encoder, whose lora_rank, adapter_width or fusion blocks "
            f"are others: {problem}"
        )
    encoder.load_state_dict(tensors, strict=False)


def _adapter_state(encoder: DiscoVLAEncoder) -> dict[str, Tensor]:
    state = encoder.state_dict()
    return {name: value for name, value in state.items() if not name.startswith("clip.")}


def _misfit(expected: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> str:
    """What is wrong with names and shapes of weights; empty where nothing is."""
    unknown = sorted(weights.keys() - expected.keys())
    if unknown:
        return f"no such weights here: {_some(unknown)}"
    for name, value in weights.items():
        if value.shape != expected[name].shape:
            return f"{name} has shape {tuple(value.shape)}, here {tuple(expected[name].shape)}"
    return ""


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def _refuse_merged(encoder: DiscoVLAEncoder) -> None:
    if encoder.is_merged:
        raise RuntimeError(
            "LoRA is merged into CLIP's weights, so this encoder has no adapters to save or load"
        )
