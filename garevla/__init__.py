"""Text–video retrieval: GARE's exact, memory-lean similarity and losses, and DiscoVLA's."""

from typing import TYPE_CHECKING

from garevla.utils.lazy import names_of

__version__ = "0.1.0"

# Imported on first use: torch takes seconds, and `garevla --help` has no use for it.
if TYPE_CHECKING:
    from garevla.discovla.losses import DiscoVLALoss as DiscoVLALoss
    from garevla.discovla.losses import DiscoVLALossOutput as DiscoVLALossOutput
    from garevla.discovla.losses import GareDiscoVLALoss as GareDiscoVLALoss
    from garevla.discovla.losses import GareDiscoVLALossOutput as GareDiscoVLALossOutput
    from garevla.discovla.losses import alignment_distillation as alignment_distillation
    from garevla.discovla.similarity import frame_level_similarity as frame_level_similarity
    from garevla.discovla.similarity import mean_frame_similarity as mean_frame_similarity
    from garevla.head.info_nce import info_nce as info_nce
    from garevla.head.losses import GareLoss as GareLoss
    from garevla.head.losses import GareLossOutput as GareLossOutput
    from garevla.head.regularizers import direction_diversity as direction_diversity
    from garevla.head.regularizers import information_bottleneck as information_bottleneck
    from garevla.head.regularizers import trust_region as trust_region
    from garevla.head.similarity import gare_increments as gare_increments
    from garevla.head.similarity import gare_pairs as gare_pairs
    from garevla.head.similarity import gare_similarity as gare_similarity
    from garevla.head.texts import Texts as Texts
    from garevla.head.videos import Videos as Videos
    from garevla.head.videos import encode_videos as encode_videos
    from garevla.increments.base import GarePairs as GarePairs
    from garevla.increments.base import Increments as Increments
    from garevla.increments.hidden.gap_mlp import GapMLPPsi as GapMLPPsi
    from garevla.increments.low_rank.cross_attention import CrossAttentionPsi as CrossAttentionPsi
    from garevla.ops.backends import BackendUnavailableError as BackendUnavailableError
    from garevla.ops.backends import backend_status as backend_status
    from garevla.ops.backends import register_backend as register_backend
    from garevla.ops.backends import use_backend as use_backend
    from garevla.ops.dropout import dropout_seed as dropout_seed
    from garevla.ops.precision import use_precision as use_precision
else:
    __getattr__, __dir__, __all__ = names_of(
        __name__,
        {
            "DiscoVLALoss": "garevla.discovla.losses",
            "DiscoVLALossOutput": "garevla.discovla.losses",
            "GareDiscoVLALoss": "garevla.discovla.losses",
            "GareDiscoVLALossOutput": "garevla.discovla.losses",
            "alignment_distillation": "garevla.discovla.losses",
            "frame_level_similarity": "garevla.discovla.similarity",
            "mean_frame_similarity": "garevla.discovla.similarity",
            "info_nce": "garevla.head.info_nce",
            "GareLoss": "garevla.head.losses",
            "GareLossOutput": "garevla.head.losses",
            "direction_diversity": "garevla.head.regularizers",
            "information_bottleneck": "garevla.head.regularizers",
            "trust_region": "garevla.head.regularizers",
            "gare_increments": "garevla.head.similarity",
            "gare_pairs": "garevla.head.similarity",
            "gare_similarity": "garevla.head.similarity",
            "Texts": "garevla.head.texts",
            "Videos": "garevla.head.videos",
            "encode_videos": "garevla.head.videos",
            "GarePairs": "garevla.increments.base",
            "Increments": "garevla.increments.base",
            "GapMLPPsi": "garevla.increments.hidden.gap_mlp",
            "CrossAttentionPsi": "garevla.increments.low_rank.cross_attention",
            "BackendUnavailableError": "garevla.ops.backends",
            "backend_status": "garevla.ops.backends",
            "register_backend": "garevla.ops.backends",
            "use_backend": "garevla.ops.backends",
            "dropout_seed": "garevla.ops.dropout",
            "use_precision": "garevla.ops.precision",
        },
    )
