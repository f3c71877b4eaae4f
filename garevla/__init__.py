"""Text–video retrieval: GARE's exact, memory-lean similarity and losses, and DiscoVLA's."""

import garevla.ops.builtin  # noqa: F401
from garevla.discovla.losses import (
    DiscoVLALoss,
    DiscoVLALossOutput,
    GareDiscoVLALoss,
    GareDiscoVLALossOutput,
    alignment_distillation,
)
from garevla.discovla.similarity import frame_level_similarity, mean_frame_similarity
from garevla.head.info_nce import info_nce
from garevla.head.losses import GareLoss, GareLossOutput
from garevla.head.regularizers import direction_diversity, information_bottleneck, trust_region
from garevla.head.similarity import gare_increments, gare_pairs, gare_similarity
from garevla.increments.base import GarePairs, Increments
from garevla.increments.hidden.gap_mlp import GapMLPPsi
from garevla.increments.low_rank.cross_attention import CrossAttentionPsi
from garevla.ops.backends import (
    BackendUnavailableError,
    backend_status,
    register_backend,
    use_backend,
)
from garevla.ops.dropout import dropout_seed
from garevla.ops.precision import use_precision

__version__ = "0.1.0"

__all__ = [
    "BackendUnavailableError",
    "CrossAttentionPsi",
    "DiscoVLALoss",
    "DiscoVLALossOutput",
    "GapMLPPsi",
    "GareDiscoVLALoss",
    "GareDiscoVLALossOutput",
    "GareLoss",
    "GareLossOutput",
    "GarePairs",
    "Increments",
    "alignment_distillation",
    "backend_status",
    "direction_diversity",
    "dropout_seed",
    "frame_level_similarity",
    "gare_increments",
    "gare_pairs",
    "gare_similarity",
    "info_nce",
    "information_bottleneck",
    "mean_frame_similarity",
    "register_backend",
    "trust_region",
    "use_backend",
    "use_precision",
]
