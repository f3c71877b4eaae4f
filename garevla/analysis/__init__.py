"""What increments do to features, gradients and loss (docs/analysis.md)."""

from garevla.analysis.analysis import Analysis, analyse
from garevla.analysis.features import alignment, modality_gap, uniformity
from garevla.analysis.histograms import Histogram
from garevla.analysis.ideal import TrustRegion, ideal_increments

__all__ = [
    "Analysis",
    "Histogram",
    "TrustRegion",
    "alignment",
    "analyse",
    "ideal_increments",
    "modality_gap",
    "uniformity",
]
