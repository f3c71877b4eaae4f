"""An open_clip model by its name or file, with its weights."""

from __future__ import annotations

import copy
import json
import pickle
import textwrap
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import open_clip
import torch
from open_clip.transform import PreprocessCfg, merge_preprocess_dict

from garevla.encoders.model_config import check_supported, load_config
from garevla.encoders.tokenizers import TokenizerSource
from garevla.utils.digest import is_as_written

_CLIP_OF_A_RUN = "encoder.clip."
# The InfoNCE losses do not change where a bias is added to all logits.
_WITHOUT_FEATURES = ("logit_bias", "text_decoder")
# In the state of OpenAI's files, and no weights.
OPENAI_CONSTANTS = ("input_resolution", "context_length", "vocab_size")


class PretrainedWeightsError(RuntimeError):
    """Pretrained weights could not be had."""


class Backbone(NamedTuple):
    """An open_clip model, and what belongs to it.

    Attributes:
        clip: ``open_clip.CLIP``, ``CustomTextCLIP`` or ``CoCa``. Weights that no feature depends
            on (the bias of logits, a text decoder) do not train.
        config: its architecture.
        preprocess: open_clip's settings of its images.
        tokenizer: which tokenizer it has.
    """

    clip: Any
    config: dict[str, Any]
    preprocess: dict[str, Any]
    tokenizer: TokenizerSource


def create_clip(
    model_name: str, pretrained: str | None, *, load_weights: bool = True, adapted: bool = False
) -> Backbone:
    """A checked, built and loaded open_clip model.

    Args:
        model_name, pretrained: as for :class:`garevla.encoders.ClipEncoder`.
        load_weights: False: random ones, and ``pretrained`` tells the preprocessing alone.
        adapted: whether DiscoVLA is to adapt it.

    Raises:
        ValueError, FileNotFoundError, PretrainedWeightsError: as
            :class:`garevla.encoders.ClipEncoder`.
    """
    config, preprocess, path = load_config(model_name)
    check_supported(model_name, config, adapted=adapted)
    if not load_weights or pretrained is None:
        clip = _build(model_name, config)
    elif Path(pretrained).is_file():
        clip = _build(model_name, config)
        _load_checkpoint(clip, model_name, pretrained)
    elif path is None:
        clip = _create_with_tag(model_name, pretrained)
    else:
        raise PretrainedWeightsError(
            f"pretrained: no such file: {pretrained}; with a model config of your own it is the "
            "path of a local checkpoint, or None for random weights"
        )
    for name in _WITHOUT_FEATURES:
        if getattr(clip, name, None) is not None:
            getattr(clip, name).requires_grad_(False)
    for module in clip.modules():
        # Layers left out at random would have no gradient, which DistributedDataParallel refuses.
        if isinstance(getattr(module, "layerdrop", None), float):
            module.layerdrop = 0.0
    source = TokenizerSource(model_name)
    if path is None:
        preprocess = _preprocess_of(model_name, pretrained)
    else:
        source = TokenizerSource("", json.dumps(config["text_cfg"]), str(path.parent))
    return Backbone(clip, config, merge_preprocess_dict(PreprocessCfg(), preprocess), source)


def _build(model_name: str, config: dict[str, Any]) -> Any:
    """A model with random weights, of the class that open_clip makes of its config."""
    config = copy.deepcopy(config)
    # Nothing is downloaded for a model of random weights.
    for tower, library in (("vision_cfg", "timm"), ("text_cfg", "hf")):
        if config[tower].get(f"{library}_model_name"):
            config[tower][f"{library}_model_pretrained"] = False
    hf_name = config["text_cfg"].get("hf_model_name")
    kind = open_clip.CLIP
    if config.pop("custom_text", False) or hf_name:
        kind = open_clip.CoCa if "multimodal_cfg" in config else open_clip.CustomTextCLIP
    try:
        return kind(**config)
    except (TypeError, RuntimeError) as error:
        raise ValueError(f"model config {model_name!r} does not fit open_clip: {error}") from error
    except OSError as error:
        raise PretrainedWeightsError(
            f"the config of {model_name!r}'s text tower, {hf_name!r}, could not be downloaded; on "
            "a machine without internet give the folder of a local one as hf_model_name in a JSON "
            f"model config. Reason: {_sentence(error)}"
        ) from error


def _preprocess_of(model_name: str, pretrained: str | None) -> dict[str, Any]:
    """What open_clip says of the images of a model's weights; of weights that it does not know,
    what those that it knows have in common."""
    if pretrained is not None and open_clip.is_pretrained_cfg(model_name, pretrained):
        tags = [pretrained]
    else:
        tags = open_clip.list_pretrained_tags_by_model(model_name)
    known = [merge_preprocess_dict({}, open_clip.get_pretrained_cfg(model_name, t)) for t in tags]
    return {
        name: value
        for name, value in (known[0] if known else {}).items()
        if all(other[name] == value for other in known)
    }


def _create_with_tag(model_name: str, tag: str) -> Any:
    """An open_clip model with weights that open_clip knows by name and downloads."""
    if not open_clip.is_pretrained_cfg(model_name, tag):
        raise PretrainedWeightsError(
            f"pretrained: {tag!r} is neither a file nor weights of {model_name!r} that open_clip "
            f"knows: {open_clip.list_pretrained_tags_by_model(model_name)}"
        )
    try:
        return open_clip.create_model(model_name, tag)
    except Exception as error:
        raise PretrainedWeightsError(
            f"pretrained: weights {tag!r} of {model_name!r} could not be downloaded; on a machine "
            f"without internet give the path of a local checkpoint instead. Reason: {error}"
        ) from error


def _load_checkpoint(clip: Any, model_name: str, path: str) -> None:
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
