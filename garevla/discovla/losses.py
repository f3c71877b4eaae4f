"""DiscoVLA's losses (CVPR 2025), alone and joined with GARE's."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch.nn.functional as F
from torch import Tensor, nn

from garevla.discovla.sharding import sharded_distillation
from garevla.discovla.similarity import frame_level_similarity, mean_frame_similarity
from garevla.head.info_nce import Targets, check_targets
from garevla.head.losses import GareLoss, GareLossOutput
from garevla.head.sharded_statistics import contrastive_loss
from garevla.head.sharding import Layout, Shard, shard_of
from garevla.head.texts import Texts
from garevla.increments.base import IncrementNetwork
from garevla.ops.backends import check_backend
from garevla.ops.precision import full_precision
from garevla.utils.outputs import Output
from garevla.utils.validation import as_logit_scale, check_features

if TYPE_CHECKING:
    from garevla.head.sharding import Group

logger = logging.getLogger(__name__)

DistillationVariant = Literal["published", "mean_detached"]


def alignment_distillation(
    frame_similarity: Tensor,
    video_similarity: Tensor,
    logit_scale: Tensor | float,
    *,
    variant: DistillationVariant = "published",
) -> Tensor:
    """Image- to video-level alignment distillation: KL(P_frame ‖ P_video), rows and columns.

    P are the softmax probabilities of the similarities times ``logit_scale``, over the videos of
    each text and over the texts of each video; the two directions are averaged.

    Args:
        frame_similarity: (A, B), the teacher.
        video_similarity: (A, B).
        logit_scale: the factor itself, 0-d or a number.
        variant: ``"published"``: the sum of the divergences times 100 / (A·B), so that its weight
            falls as the batch grows; gradients also reach the teacher. ``"mean_detached"``: their
            mean, whatever the batch size, and no gradient for the teacher. The published value
            is 100/B of the mean in a batch of B pairs.

    Returns:
        0-d loss, at least 0.

    Raises:
        ValueError: shapes that differ, or an unknown variant.
    """
    if frame_similarity.shape != video_similarity.shape or frame_similarity.dim() != 2:
        raise ValueError(
            "frame_similarity and video_similarity must share one shape (A, B), got "
            f"{tuple(frame_similarity.shape)} and {tuple(video_similarity.shape)}"
        )
    _check_variant(variant)
    logit_scale = as_logit_scale(logit_scale)
    student, teacher = video_similarity * logit_scale, frame_similarity * logit_scale
    if variant == "mean_detached":
        teacher = teacher.detach()
    rows, columns = (
        F.kl_div(
            student.log_softmax(dim), teacher.log_softmax(dim), reduction="sum", log_target=True
        )
        for dim in (1, 0)
    )
    if variant == "published":
        return 0.5 * (rows + columns) * 100.0 / student.numel()
    return 0.5 * (rows / student.shape[0] + columns / student.shape[1])


class FrameLevelTerms(nn.Module):
    """DiscoVLA's frame-level loss and distillation, for any video-level similarity.

    Args:
        frame_weight: weight of the frame-level loss; published: 0.3. 0 leaves it out.
        distillation_weight: weight of the distillation; published: 1. 0 leaves it out.
        distillation: as ``variant`` in :func:`alignment_distillation`.
        backend: of the frame-level similarity, as in :func:`frame_level_similarity`.

    Raises:
        ValueError: a negative weight, an unknown variant or backend.
    """

    def __init__(
        self,
        frame_weight: float = 0.3,
        distillation_weight: float = 1.0,
        distillation: DistillationVariant = "published",
        backend: str = "auto",
    ) -> None:
        super().__init__()
        check_backend(backend)
        weights = {"frame_weight": frame_weight, "distillation_weight": distillation_weight}
        for name, value in weights.items():
            if not 0.0 <= value < float("inf"):
                raise ValueError(f"{name} must be a finite number, at least 0, got {value}")
        _check_variant(distillation)
        self.frame_weight = frame_weight
        self.distillation_weight = distillation_weight
        self.distillation = distillation
        self.backend = backend
        self._said_that_off = False

    def extra_repr(self) -> str:
        return (
            f"frame_weight={self.frame_weight}, distillation_weight={self.distillation_weight}, "
            f"distillation={self.distillation!r}, backend={self.backend!r}"
        )

    def forward(
        self,
        loss: Tensor,
        video_similarity: Tensor,
        pseudo_caption_features: Tensor | None,
        frame_features: Tensor,
        logit_scale: Tensor | float,
        frame_mask: Tensor | None = None,
        targets: Targets | None = None,
        shard: Shard | None = None,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Add the terms to a video-level loss; arguments as in :meth:`DiscoVLALoss.forward`.

        Args:
            video_similarity: (A, B); where processes share the batch, of all their texts.
            shard: this process's part of the batch.

        Returns:
            The total, the frame-level loss and the distillation, the last two without their
            weights; None for what is left out.
        """
        if not (self.frame_weight or self.distillation_weight):
            return loss, None, None
        if shard is not None:
            shard.require_alike(
                ["captioned_frames", "has_mask"],
                "pseudo_caption_features must have one shape (…, F, D) in all processes, padding "
                "included, or be given in none, and so must frame_mask",
            )
        if pseudo_caption_features is None:
            if not self._said_that_off:
                logger.warning("no pseudo captions: frame-level loss and distillation are off")
                self._said_that_off = True
            return loss, None, None
        num_texts = len(video_similarity) if shard is None else shard.own_texts
        if pseudo_caption_features.dim() == 3 and pseudo_caption_features.shape[0] != num_texts:
            raise ValueError(
                f"pseudo_caption_features must have shape ({num_texts}, F, D), one set per text, "
                f"got {tuple(pseudo_caption_features.shape)}"
            )
        if targets is not None:
            num_videos = video_similarity.shape[1]
            targets = check_targets(targets, num_texts, num_videos, video_similarity.device)
        caption_mask = frame_mask
        if frame_mask is not None and targets is not None:
            caption_mask = frame_mask[targets]
        captions = pseudo_caption_features
        if shard is not None:
            captions, caption_mask = _all_captions(captions, caption_mask, shard)
        similarity = frame_level_similarity(
            captions,
            frame_features,
            logit_scale,
            caption_mask,
            frame_mask,
            backend=self.backend,
        )
        frame = distillation = None
        if self.frame_weight:
            frame = contrastive_loss(similarity, logit_scale, targets, shard)
            loss = loss + self.frame_weight * frame
        if self.distillation_weight:
            pairs = similarity, video_similarity, logit_scale
            if shard is None:
                distillation = alignment_distillation(*pairs, variant=self.distillation)
            else:
                distillation = sharded_distillation(*pairs, self.distillation, shard)
            loss = loss + self.distillation_weight * distillation
        return loss, frame, distillation


def _all_captions(
    captions: Tensor, caption_mask: Tensor | None, shard: Shard
) -> tuple[Tensor, Tensor | None]:
    """All processes' pseudo captions (A, F, D) and their mask (A, F)."""
    if caption_mask is not None:
        caption_mask = shard.gather(caption_mask, shard.text_counts)
    return shard.gather(captions, shard.text_counts), caption_mask


def _check_variant(variant: str) -> None:
    if variant not in get_args(DistillationVariant):
        raise ValueError(
            f"distillation must be one of {get_args(DistillationVariant)}, got {variant!r}"
        )


@dataclass(frozen=True)
class DiscoVLALossOutput(Output):
    """The DiscoVLA loss and its terms, 0-d tensors, not multiplied by their weights; found by name
    and by position, too, as in :class:`garevla.GareLossOutput`."""

    loss: Tensor
    """contrastive + frame_weight·frame + distillation_weight·distillation"""
    contrastive: Tensor
    """of the video level"""
    frame: Tensor | None
    """None where its weight is 0 or there are no pseudo captions."""
    distillation: Tensor | None
    """None where its weight is 0 or there are no pseudo captions."""
    similarity: Tensor | None = None
    """(A, B) of the video level, detached, where it was asked for."""


class DiscoVLALoss(nn.Module):
    """The whole DiscoVLA training loss, as published by default.

    Args:
        frame_weight, distillation_weight, distillation, backend: as in :class:`FrameLevelTerms`.
        group: processes that share a batch, as in :class:`garevla.GareLoss`.

    Raises:
        ValueError: a negative weight, an unknown variant or backend.
    """

    def __init__(
        self,
        *,
        frame_weight: float = 0.3,
        distillation_weight: float = 1.0,
        distillation: DistillationVariant = "published",
        backend: str = "auto",
        group: Group = None,
    ) -> None:
        super().__init__()
        self.group = group
        self.frame_level = FrameLevelTerms(frame_weight, distillation_weight, distillation, backend)

    def similarity(
        self, text_features: Tensor, frame_features: Tensor, frame_mask: Tensor | None = None
    ) -> Tensor:
        """The similarity (A, B) that this loss trains: :func:`mean_frame_similarity`."""
        return mean_frame_similarity(text_features, frame_features, frame_mask)

    def forward(
        self,
        text_features: Tensor,
        frame_features: Tensor,
        logit_scale: Tensor | float,
        frame_mask: Tensor | None = None,
        pseudo_caption_features: Tensor | None = None,
        *,
        targets: Targets | None = None,
        return_similarity: bool = False,
    ) -> DiscoVLALossOutput:
        """The loss of a batch of A texts and B videos.

        Args:
            text_features: (A, D), not normalized.
            frame_features: (B, F, D), not normalized.
            logit_scale: the factor itself, not its logarithm; CLIP clamps it at 100.
            frame_mask: (B, F), 1 or True for a valid frame.
            pseudo_caption_features: (A, F, D), not normalized: for each text, a caption of every
                frame of its video. ``None`` switches the frame-level terms off, which is said
                once in the log.
            targets: (A,), the video of each text, as in :func:`garevla.info_nce`.
            return_similarity: also return the (A, B) video-level similarity, detached.

        Raises:
            TypeError, ValueError: as in :func:`mean_frame_similarity`,
                :func:`frame_level_similarity` and :func:`garevla.info_nce`.
        """
        sizes = len(text_features), len(frame_features)
        layout = Layout.of(frame_features, frame_mask, pseudo_caption_features)
        shard = shard_of(self.group, *sizes, text_features.device, layout)
        if shard is not None:
            # What the others send must not be joined to wrong shapes.
            check_features(text_features, frame_features, text_features.shape[-1])
            targets = check_targets(targets, *sizes, text_features.device)
            text_features = shard.gather(text_features, shard.text_counts)
        similarity = self.similarity(text_features, frame_features, frame_mask)
        with full_precision(text_features):
            contrastive = contrastive_loss(similarity, logit_scale, targets, shard)
            loss, frame, distillation = self.frame_level(
                contrastive,
                similarity,
                pseudo_caption_features,
                frame_features,
                logit_scale,
                frame_mask,
                targets,
                shard,
            )
        return DiscoVLALossOutput(
            loss,
            contrastive,
            frame,
            distillation,
            similarity.detach() if return_similarity else None,
        )


@dataclass(frozen=True)
class GareDiscoVLALossOutput(GareLossOutput):
    """The joint loss and its terms; ``loss`` includes the weighted frame-level terms."""

    frame: Tensor | None = None
    """None where its weight is 0 or there are no pseudo captions."""
    distillation: Tensor | None = None
    """None where its weight is 0 or there are no pseudo captions."""


class GareDiscoVLALoss(GareLoss):
    """GARE and DiscoVLA joined: GARE's similarity in place of the cosine with the mean frame.

    Both the video-level InfoNCE and the distillation use the corrected similarity, so that the
    frame level teaches ψ too; GARE's regularizers stay as they are.

    Args:
        psi: the increment network; its parameters are this module's.
        frame_weight, distillation_weight, distillation: as in :class:`FrameLevelTerms`.
        gare: the other arguments of :class:`garevla.GareLoss`.

    Raises:
        ValueError, BackendUnavailableError: as in :class:`garevla.GareLoss` and
            :class:`FrameLevelTerms`.
    """

    def __init__(
        self,
        psi: IncrementNetwork,
        *,
        frame_weight: float = 0.3,
        distillation_weight: float = 1.0,
        distillation: DistillationVariant = "published",
        **gare: Any,
    ) -> None:
        super().__init__(psi, **gare)
        self.frame_level = FrameLevelTerms(
            frame_weight, distillation_weight, distillation, self.backend
        )

    # The frame-level terms need the frames themselves, not videos that were kept.
    def forward(  # type: ignore[override]
        self,
        text_features: Tensor | Texts,
        frame_features: Tensor,
        logit_scale: Tensor | float,
        frame_mask: Tensor | None = None,
        pseudo_caption_features: Tensor | None = None,
        *,
        targets: Targets | None = None,
        return_similarity: bool = False,
    ) -> GareDiscoVLALossOutput:
        """The loss of a batch; arguments and errors as in :meth:`DiscoVLALoss.forward` and
        :class:`garevla.GareLoss`."""
        shard = self.shard(text_features, frame_features, frame_mask, pseudo_caption_features)
        if shard is not None and self.corrects == "video":
            raise NotImplementedError(
                "frame-level terms of a batch whose videos are corrected are for one process: they "
                "need the videos of this one and all texts, which have changed places"
            )
        terms, similarity = self.terms(
            text_features,
            frame_features,
            logit_scale,
            frame_mask,
            targets,
            with_similarity=True,
            shard=shard,
        )
        assert similarity is not None  # it was asked for
        with full_precision(frame_features):
            terms["loss"], frame, distillation = self.frame_level(
                terms["loss"],
                similarity,
                pseudo_caption_features,
                frame_features,
                logit_scale,
                frame_mask,
                targets,
                shard,
            )
        return GareDiscoVLALossOutput(
            **terms,
            similarity=similarity.detach() if return_similarity else None,
            frame=frame,
            distillation=distillation,
        )
