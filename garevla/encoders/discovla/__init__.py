"""DiscoVLA (CVPR 2025): a frozen CLIP, adapted to video with few parameters."""

from __future__ import annotations

from garevla.encoders.discovla.encoder import DiscoVLAEncoder
from garevla.encoders.discovla.weights import AdaptersError

__all__ = ["AdaptersError", "DiscoVLAEncoder"]
