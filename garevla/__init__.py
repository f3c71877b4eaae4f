"""Text–video retrieval: exact, memory-lean GARE similarity and losses."""

from garevla.backends import BackendUnavailableError, backend_status, use_backend
from garevla.discovla_losses import (
    DiscoVLALoss,
    DiscoVLALossOutput,
    GareDiscoVLALoss,
    GareDiscoVLALossOutput,
    alignment_distillation,
)
from garevla.frame_similarity import frame_level_similarity, mean_frame_similarity
from garevla.losses import GareLoss, GareLossOutput, info_nce
from garevla.pairs import Increments
from garevla.precision import use_precision
from garevla.psi import CrossAttentionPsi
from garevla.regularisers import (
    direction_diversity,
    information_bottleneck,
    trust_region,
)
from garevla.similarity import GarePairs, gare_increments, gare_pairs, gare_similarity

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
