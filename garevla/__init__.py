"""Text–video retrieval: exact, memory-lean GARE similarity and losses."""

from garevla.backends import BackendUnavailableError, backend_status
from garevla.losses import GareLoss, GareLossOutput, info_nce
from garevla.pairs import Increments
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
    "GareLoss",
    "GareLossOutput",
    "GarePairs",
    "Increments",
    "backend_status",
    "direction_diversity",
    "gare_increments",
    "gare_pairs",
    "gare_similarity",
    "info_nce",
    "information_bottleneck",
    "trust_region",
]
