"""Models trained with the published code of GARE or CLIP4Clip, out of their checkpoints.

Both put a transformer over the frames (CLIP4Clip's "seqTransf") on top of OpenAI's CLIP, under the
same names; GARE has ψ besides.
"""

from __future__ import annotations

import logging
import os
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from garevla.encoders.clip import ClipEncoder
from garevla.encoders.model_config import named_config
from garevla.encoders.pretrained import OPENAI_CONSTANTS, PretrainedWeightsError
from garevla.encoders.temporal import TemporalTransformer
from garevla.increments.low_rank.cross_attention import CrossAttentionPsi
from garevla.utils.padding import Padding
from garevla.utils.weights import bare_weights, misfit, summary

logger = logging.getLogger(__name__)

_CLIP = "clip."
_TEMPORAL = "transformerClip."
_POSITIONS = "frame_position_embeddings.weight"
_PSI = ("psi.", "agent.")
# Of GARE: a layer that its forward pass never reaches.
_UNUSED = ("weight_fc.",)
# The models that both offer, in open_clip's names.
_MODELS = ("ViT-B-32-quickgelu", "ViT-B-16-quickgelu", "ViT-L-14-quickgelu")
_OTHERS = {
    "lstm_visual.": "CLIP4Clip's LSTM over the frames (seqLSTM)",
    "cross.": "CLIP4Clip's transformer over words and frames (tightTransf)",
}


class OfficialModel(NamedTuple):
    """What a published checkpoint holds."""

    encoder: ClipEncoder
    psi: CrossAttentionPsi | None
    """None in CLIP4Clip's, whose similarity is :func:`garevla.mean_frame_similarity`."""


def load_official(
    path: str | os.PathLike[str],
    model_name: str | None = None,
    *,
    psi_heads: int = 1,
    max_frames: int = 12,
    context_length: int = 32,
    padding: Padding = "ignored",
) -> OfficialModel:
    """Encoder and ψ of a checkpoint that the published code of GARE or CLIP4Clip saved.

    The file is read with ``weights_only=True``. It may hold the weights bare or in a dictionary,
    under ``state_dict``, ``model_state_dict`` or ``model``, and their names may begin as wrappers
    leave them (``module.``, ``model.``, ``_orig_mod.``). What was found is in the log.

    Args:
        path: the file.
        model_name: CLIP's architecture, as for :class:`garevla.encoders.ClipEncoder`; by default
            that of ViT-B/32, ViT-B/16 and ViT-L/14 whose shapes these are.
        psi_heads: attention heads of ψ, which no shape tells. Published: 1.
        max_frames: the most frames a video may have, at most the positions in the file (77).
        context_length: tokens per text.
        padding: what padded frames do, in encoder and ψ; ``"published"`` for the published scores
            of videos shorter than ``max_frames``.

    Returns:
        Both in evaluation mode, on the CPU, in float32.

    Raises:
        FileNotFoundError: no such file.
        PretrainedWeightsError: it cannot be read, or lacks weights, or holds another model's; the
            message says what was found.
        ValueError: as :class:`garevla.encoders.ClipEncoder` and
            :class:`garevla.CrossAttentionPsi`.
    """
    path = Path(path)
    weights = _read(path)
    parts = _parts(path, weights)
    name = model_name or _recognize(path, parts.clip)
    encoder = ClipEncoder(
        name,
        None,
        temporal_layers=parts.temporal_layers,
        max_frames=max_frames,
        context_length=context_length,
        padding=padding,
    )
    if (reason := misfit(encoder.clip, parts.clip)) is not None:
        raise _unfit(path, f"its CLIP is not {name!r}: {reason}", weights)
    encoder.clip.load_state_dict(parts.clip)
    if encoder.temporal is not None:
        _load_temporal(path, encoder.temporal, parts, weights)
    psi = None
    if parts.psi:
        psi = CrossAttentionPsi(encoder.dim, psi_heads, padding=padding).eval()
        try:
            psi.load_official_state_dict(parts.psi)
        except (KeyError, ValueError) as error:
            raise _unfit(path, str(error.args[0]), weights) from error
    encoder.clamp_logit_scale_()
    logger.info(
        "%s holds %s, %d temporal layers, %s; weights found: %s",
        path,
        name,
        parts.temporal_layers,
        "no psi" if psi is None else "psi",
        summary(weights),
    )
    return OfficialModel(encoder.eval(), psi)


class _Parts(NamedTuple):
    clip: dict[str, Tensor]
    temporal: dict[str, Tensor]
    positions: Tensor | None
    psi: dict[str, Tensor]

    @property
    def temporal_layers(self) -> int:
        layers = {re.match(r"resblocks\.(\d+)\.", name) for name in self.temporal}
        return len({found[1] for found in layers if found is not None})


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(f"official checkpoint not found: {path}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise PretrainedWeightsError(
            f"{path} holds more than tensors and plain values, which might run code and is not "
            "loaded; where you trust it, save its weights alone: "
            "torch.save(model.state_dict(), FILE)"
        ) from error
    except PermissionError:
        raise
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise PretrainedWeightsError(f"{path} is not a readable checkpoint: {reason}") from error
    if isinstance(state, Mapping) and {"format", "model"} <= state.keys():
        raise PretrainedWeightsError(f"{path} is a checkpoint of garevla's own training")
    try:
        return bare_weights(state)
    except ValueError as error:
        raise PretrainedWeightsError(f"{path} holds no model: {error}") from error


def _parts(path: Path, weights: dict[str, Tensor]) -> _Parts:
    """Tell the weights of a checkpoint apart."""
    known = (_CLIP, _TEMPORAL, _POSITIONS, *_PSI, *_UNUSED)
    others = [name for name in weights if not name.startswith(known)]
    for name in weights:
        for prefix, what in _OTHERS.items():
            if name.startswith(prefix):
                raise _unfit(path, f"it has {what}, which is not supported", weights)
        if "TVPt_" in name:
            raise _unfit(
                path, "it is DiscoVLA's: DiscoVLAEncoder.load_official_state_dict", weights
            )
    if "visual.conv1.weight" in weights:
        raise _unfit(path, "it is a CLIP alone: ClipEncoder(pretrained=FILE)", weights)
    clip = {
        name.removeprefix(_CLIP): value
        for name, value in weights.items()
        if name.startswith(_CLIP) and name.removeprefix(_CLIP) not in OPENAI_CONSTANTS
    }
    if not clip:
        raise _unfit(path, "it has no weights named clip.*", weights)
    if others:
        raise _unfit(
            path, f"{len(others)} weights are of neither model, such as {others[0]}", weights
        )
    return _Parts(
        clip,
        {
            name.removeprefix(_TEMPORAL): value
            for name, value in weights.items()
            if name.startswith(_TEMPORAL)
        },
        weights.get(_POSITIONS),
        {name: value for name, value in weights.items() if name.startswith(_PSI)},
    )


def _recognize(path: Path, clip: dict[str, Tensor]) -> str:
    """The model whose patches, widths and positions these weights have."""
    shapes = {name: tuple(value.shape) for name, value in clip.items()}
    for name in _MODELS:
        config = named_config(name)
        vision, text = config["vision_cfg"], config["text_cfg"]
        patch, width = vision["patch_size"], vision["width"]
        expected = {
            "visual.conv1.weight": (width, 3, patch, patch),
            "visual.positional_embedding": ((vision["image_size"] // patch) ** 2 + 1, width),
            "text_projection": (text["width"], config["embed_dim"]),
        }
        if all(shapes.get(key) == shape for key, shape in expected.items()):
            return name
    found = ", ".join(f"{key} {shapes.get(key, 'absent')}" for key in expected)
    raise PretrainedWeightsError(
        f"{path} holds a CLIP that is none of {', '.join(_MODELS)}: {found}; give model_name, an "
        "open_clip name or the path of a JSON model config"
    )


def _load_temporal(
    path: Path, temporal: TemporalTransformer, parts: _Parts, weights: dict[str, Tensor]
) -> None:
    positions, frames = parts.positions, temporal.max_frames
    if positions is None:
        raise _unfit(path, f"it has {_TEMPORAL}* and lacks {_POSITIONS}", weights)
    if positions.dim() != 2 or positions.shape[1] != temporal.dim or len(positions) < frames:
        raise _unfit(
            path,
            f"{_POSITIONS} has shape {tuple(positions.shape)}, and max_frames {frames} needs at "
            f"least {(frames, temporal.dim)}",
            weights,
        )
    if (reason := misfit(temporal.transformer, parts.temporal)) is not None:
        raise _unfit(path, f"{_TEMPORAL}*: {reason}", weights)
    temporal.transformer.load_state_dict(parts.temporal)
    with torch.no_grad():
        temporal.position_embedding.copy_(positions[:frames])


def _unfit(path: Path, reason: str, weights: Mapping[str, Tensor]) -> PretrainedWeightsError:
    return PretrainedWeightsError(
        f"{path} is no checkpoint of published GARE or CLIP4Clip that can be loaded: {reason}; "
        f"weights found: {summary(weights)}"
    )
