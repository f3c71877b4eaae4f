"""An open_clip model by its name or file, with its weights."""

from __future__ import annotations

import pickle
import textwrap
import zipfile
from pathlib import Path
from typing import Any

import open_clip
import torch

from garevla.encoders.model_config import (
    check_supported,
    find_config_file,
    named_config,
    read_config_file,
)
from garevla.utils.digest import is_as_written

_CLIP_OF_A_RUN = "encoder.clip."
# In the state of OpenAI's files, and no weights.
OPENAI_CONSTANTS = ("input_resolution", "context_length", "vocab_size")


class PretrainedWeightsError(RuntimeError):
    """Pretrained weights could not be had."""


def create_clip(model_name: str, pretrained: str | None) -> tuple[open_clip.CLIP, dict[str, Any]]:
    """A checked, built and loaded open_clip model, and its image preprocessing.

    Args:
        model_name, pretrained: as for :class:`garevla.encoders.ClipEncoder`.

    Returns:
        The model, and open_clip's settings of its images where it has some.

    Raises:
        ValueError, FileNotFoundError, PretrainedWeightsError: as
            :class:`garevla.encoders.ClipEncoder`.
    """
    path = find_config_file(model_name)
    preprocess: dict[str, Any] = {}
    if path is None:
        config = named_config(model_name)
    else:
        config, preprocess = read_config_file(path)
    check_supported(model_name, config)
    checkpoint = pretrained if pretrained is not None and Path(pretrained).is_file() else None
    if pretrained is not None and checkpoint is None:
        if path is None:
            return _create_with_tag(model_name, pretrained)
        raise PretrainedWeightsError(
            f"pretrained: no such file: {pretrained}; with a model config of your own it is the "
            "path of a local checkpoint, or None for random weights"
        )
    try:
        clip = open_clip.CLIP(**config)
    except TypeError as error:
        raise ValueError(f"model config {model_name!r} does not fit open_clip: {error}") from error
    if checkpoint is not None:
        _load_checkpoint(clip, model_name, checkpoint)
    return clip, preprocess


def _create_with_tag(model_name: str, tag: str) -> tuple[open_clip.CLIP, dict[str, Any]]:
    """An open_clip model with weights that open_clip knows by name and downloads."""
    if not open_clip.is_pretrained_cfg(model_name, tag):
        raise PretrainedWeightsError(
            f"pretrained: {tag!r} is neither a file nor weights of {model_name!r} that open_clip "
            f"knows: {open_clip.list_pretrained_tags_by_model(model_name)}"
        )
    try:
        clip = open_clip.create_model(model_name, tag)
    except Exception as error:
        raise PretrainedWeightsError(
            f"pretrained: weights {tag!r} of {model_name!r} could not be downloaded; on a machine "
            f"without internet give the path of a local checkpoint instead. Reason: {error}"
        ) from error
    return clip, open_clip.get_model_preprocess_cfg(clip)


def _load_checkpoint(clip: open_clip.CLIP, model_name: str, path: str) -> None:
    """Load open_clip's checkpoint formats, the TorchScript files that OpenAI published, or CLIP's
    part of a model trained with garevla."""
    try:
        if _is_torchscript(path):
            state = torch.jit.load(path, map_location="cpu").state_dict()
            clip.load_state_dict(
                {name: value for name, value in state.items() if name not in OPENAI_CONSTANTS}
            )
        elif (state := _weights_of_a_run(path)) is not None:
            clip.load_state_dict(state)
        else:
            open_clip.load_checkpoint(clip, path)
    except Exception as error:
        raise PretrainedWeightsError(
            f"pretrained: {path} does not hold weights of {model_name!r}: {_sentence(error)}"
        ) from error


def _weights_of_a_run(path: str) -> dict[str, torch.Tensor] | None:
    """CLIP's weights in a checkpoint of garevla's training; None where it is no such file."""
    if not zipfile.is_zipfile(path):
        return None
    state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    if not isinstance(state, dict) or not {"format", "model"} <= state.keys():
        return None
    if not is_as_written(Path(path)):
        raise ValueError("it is damaged")
    return {
        name.removeprefix(_CLIP_OF_A_RUN): value
        for name, value in state["model"].items()
        if name.startswith(_CLIP_OF_A_RUN)
    }


def _sentence(error: Exception) -> str:
    """What went wrong, without torch's lists of weights or its advice to load anything."""
    if isinstance(error, pickle.UnpicklingError):
        return "it holds more than tensors, which might run code and is not loaded"
    return textwrap.shorten(str(error) or type(error).__name__, 200, placeholder=" ...")


def _is_torchscript(path: str) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())
