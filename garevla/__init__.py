"""Text–video retrieval: exact, memory-lean GARE similarity and losses."""

from garevla.discovla.losses import (
    DiscoVLALoss,
    DiscoVLALossOutput,
    GareDiscoVLALoss,
    GareDiscoVLALossOutput,
    alignment_distillation,
)
from garevla.discovla.similarity import frame_level_similarity, mean_frame_similarity
from garevla.head.losses import GareLoss, GareLossOutput, info_nce
from garevla.head.regularizers import (
    direction_diversity,
    information_bottleneck,
    trust_region,
)
from garevla.head.similarity import GarePairs, gare_increments, gare_pairs, gare_similarity
from garevla.increments.low_rank.cross_attention import CrossAttentionPsi
from garevla.ops.backends import BackendUnavailableError, backend_status, use_backend
from garevla.ops.eager.pairs import Increments
from garevla.ops.precision import use_precision

__version__ = "0.1.0"

__all__ = [
    "BackendUnavailableError",
    "CrossAttentionPsi",
    "DiscoVLALoss",
    "DiscoVLALossOutput",
    "GareDiscoVLALoss",
    "GareDiscoVLALossOutput",
    "GareLoss",
    "GareLossOutput",
    "GarePairs",
    "Increments",
    "alignment_distillation",
    "backend_status",
    "direction_diversity",
    "frame_level_similarity",
    "gare_increments",
    "gare_pairs",
    "gare_similarity",
    "info_nce",
    "information_bottleneck",
    "mean_frame_similarity",
    "trust_region",
    "use_backend",
    "use_precision",
]
