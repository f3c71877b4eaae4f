"""Encoders: CLIP towers, their adaptation to video, and the temporal transformer.

Needs ``pip install "garevla[video]"``.
"""

from __future__ import annotations

from garevla.encoders.clip import ClipEncoder
from garevla.encoders.discovla import AdaptersError, DiscoVLAEncoder
from garevla.encoders.official import OfficialModel, load_official
from garevla.encoders.pretrained import PretrainedWeightsError
from garevla.encoders.temporal import TemporalTransformer
from garevla.encoders.tokenizers import TokenizerError

__all__ = [
    "AdaptersError",
    "ClipEncoder",
    "DiscoVLAEncoder",
    "OfficialModel",
    "PretrainedWeightsError",
    "TemporalTransformer",
    "TokenizerError",
    "load_official",
]
