"""A loss's pairs, a few anchors at a time."""

from __future__ import annotations

from torch import Tensor

from garevla.analysis.gradients import InfoNCE
from garevla.analysis.sides import Sides
from garevla.head.info_nce import Targets, as_pairs, check_targets, weights_of
from garevla.utils.slices import slices_of
from garevla.utils.validation import as_logit_scale

# Numbers of the largest tensor of a chunk: increments, where they have no factors.
_AT_ONCE = 2**23


def row_chunks(sides: Sides, chunk: int | None = None) -> list[slice]:
    """All anchors, ``chunk`` at a time; by default as many as take some 64 MB."""
    num_anchors, num_others = sides.shape
    if chunk is None:
        chunk = max(1, _AT_ONCE // (num_others * sides.anchors.shape[1]))
    return slices_of(num_anchors, chunk)


def info_nce_of(
    sides: Sides, logit_scale: Tensor | float, targets: Targets | None
) -> tuple[InfoNCE, Tensor]:
    """InfoNCE of anchors and others, and the video of each text (A,).

    Raises:
        TypeError, ValueError: as :func:`garevla.info_nce`; several right videos of a text.
    """
    exchanged = sides.corrects == "video"
    num_texts, num_videos = sides.shape[::-1] if exchanged else sides.shape
    # One row is enough to learn the dtype of all.
    found = check_targets(targets, num_texts, num_videos, sides.anchors.device)
    weights, known = weights_of(as_pairs(found, num_videos, sides.wide_dtype))
    text_share = known.new_full((num_texts,), 1 / num_texts)
    video_share = known / known.sum()
    scale = float(as_logit_scale(logit_scale))
    if exchanged:
        return InfoNCE(weights.T, video_share, text_share, scale), found
    return InfoNCE(weights, text_share, video_share, scale), found
