"""All figures of a loss's features and increments, in two passes over the pairs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from garevla.analysis.features import modality_gap, uniformity
from garevla.analysis.gradients import InfoNCE, RowGradients, State, StreamedInfoNCE, ratio
from garevla.analysis.histograms import Histogram, StreamedHistogram
from garevla.analysis.ideal import TrustRegion, ideal_lengths, similarity_after
from garevla.analysis.sides import PairRows, Sides
from garevla.analysis.streaming import info_nce_of, row_chunks
from garevla.discovla.losses import DiscoVLALoss
from garevla.head.info_nce import Targets
from garevla.head.losses import GareLoss
from garevla.head.similarity import Corrects
from garevla.head.texts import Texts
from garevla.ops.precision import full_precision
from garevla.utils.modes import evaluation_mode

RADII = (0.002, 0.004, 0.008, 0.016, 0.03, 0.06, 0.12, 0.25, 0.5, 1.0)
"""Radii of the trust region that are tried by default, over the mean norm of what is corrected."""

TRUST_REGIONS: tuple[TrustRegion, ...] = ("pair", "anchor")


@dataclass(frozen=True)
class Analysis:
    """Figures of all pairs of A texts and B videos (docs/analysis.md names them).

    "Before" is without increments, "after" with them; without a network that makes any, there is
    nothing "after". "Right" and "wrong" are the pairs of a text and a video that belong together,
    and all others.

    Attributes:
        corrects: what increments are added to; None: there are none.
        num_texts, num_videos: A and B.
        scalars: by name; NaN where there is nothing to average.
        per_text: (A,) by name, on the CPU, in float64.
        per_video: (B,) likewise.
        histograms: by what is counted; the counts by kind of pair.
        radii: radii of the trust region.
        loss_of_radius: InfoNCE with ideal increments of these radii, by kind of trust region.
        slope: by kind of trust region, how fast InfoNCE falls with the radius, at radius 0.
    """

    corrects: Corrects | None
    num_texts: int
    num_videos: int
    scalars: dict[str, float]
    per_text: dict[str, Tensor] = field(repr=False)
    per_video: dict[str, Tensor] = field(repr=False)
    histograms: dict[str, Histogram] = field(repr=False)
    radii: list[float]
    loss_of_radius: dict[str, list[float]]
    slope: dict[str, float]

    def as_dict(self) -> dict[str, Any]:
        """All but what there is for each text and video, ready for JSON; None for NaN."""
        return {
            "corrects": self.corrects,
            "num_texts": self.num_texts,
            "num_videos": self.num_videos,
            "scalars": {n: None if math.isnan(x) else x for n, x in self.scalars.items()},
            "histograms": {name: each.as_dict() for name, each in self.histograms.items()},
            "radii": self.radii,
            "loss_of_radius": self.loss_of_radius,
            "slope": self.slope,
        }


@torch.no_grad()
def analyse(
    loss: GareLoss | DiscoVLALoss,
    text_features: Tensor | Texts,
    frame_features: Tensor,
    logit_scale: Tensor | float,
    frame_mask: Tensor | None = None,
    *,
    targets: Targets | None = None,
    groups: Tensor | None = None,
    radii: Sequence[float] | None = None,
    bins: int = 40,
    chunk: int | None = None,
) -> Analysis:
    """Say what a loss's increments do: to the features, the gradients and InfoNCE.

    For a batch or a whole data set: a few texts at a time (videos, where these are corrected), in
    two passes. With increments of low rank no vector of a pair exists; other networks make those of
    a few texts. The loss is looked at in evaluation mode, and its InfoNCE without label smoothing.

    Args:
        loss: whose similarity and ψ are meant. DiscoVLA's has no increments: what is said of them
            is left out.
        text_features, frame_features, frame_mask: as :meth:`garevla.GareLoss.similarity`.
        logit_scale: the factor itself, 0-d or a number.
        targets: (A,) the video of each text; ``None``: text i belongs to video i.
        groups: (B,) int64, of which equal ones mark near-duplicates
            (:class:`garevla.evaluation.NearDuplicates`).
        radii: of the trust region, in the units of the features; by default ``RADII`` times the
            mean norm of what is corrected.
        bins: of the histograms.
        chunk: texts (videos, where these are corrected) at a time; it changes memory and speed.

    Raises:
        TypeError, ValueError: as :func:`garevla.gare_similarity` and :func:`garevla.info_nce`;
            another loss; groups of another shape; radii that are not positive.
    """
    with evaluation_mode(loss), full_precision(frame_features):
        sides = Sides.of(loss, text_features, frame_features, frame_mask)
        info_nce, right = info_nce_of(sides, logit_scale, targets)
        exchanged = sides.corrects == "video"
        num_anchors, num_others = sides.shape
        num_texts, num_videos = (num_others, num_anchors) if exchanged else sides.shape
        if groups is not None and groups.shape != (num_videos,):
            raise ValueError(
                f"groups must have shape (B,) = ({num_videos},), got {tuple(groups.shape)}"
            )
        anchor_norm = float(sides.anchors.norm(dim=1).mean())
        if radii is None:
            radii = [share * anchor_norm for share in RADII]
        elif not all(0 < radius < math.inf for radius in radii):
            raise ValueError(f"radii must be positive and finite, got {list(radii)}")
        kinds = _Kinds(right, groups, num_videos, exchanged)
        return _Passes(sides, info_nce, kinds, list(radii), bins, chunk).run(
            num_texts, num_videos, anchor_norm
        )


@dataclass(frozen=True)
class _Kinds:
    """Which pairs are right, and which wrong ones show nearly the same."""

    targets: Tensor  # (A)
    groups: Tensor | None  # (B)
    num_videos: int
    exchanged: bool

    def of_rows(self, rows: slice) -> tuple[Tensor, Tensor | None]:
        """(m, N) bool: right pairs, and near-duplicates among the others."""
        videos = torch.arange(self.num_videos, device=self.targets.device)
        targets = self.targets if self.exchanged else self.targets[rows]
        videos = videos[rows] if self.exchanged else videos
        right = targets.unsqueeze(1) == videos
        near = None
        if self.groups is not None:
            groups = self.groups.to(self.targets.device)
            near = (groups[targets].unsqueeze(1) == groups[videos]) & ~right
        if self.exchanged:
            return right.T, None if near is None else near.T
        return right, near


class _Means:
    """Means of numbers that come a few at a time."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, Tensor] = {}

    def add(self, name: str, values: Tensor, weights: Tensor) -> None:
        self._sums[name] = self._sums.get(name, 0) + (values * weights).sum()
        self._counts[name] = self._counts.get(name, 0) + weights.sum()

    def items(self) -> dict[str, float]:
        """NaN of nothing."""
        return {name: float(each / self._counts[name]) for name, each in self._sums.items()}


class _Passes:
    """Two passes over all pairs: the columns of the softmaxes first, then what needs them."""

    def __init__(
        self,
        sides: Sides,
        info_nce: InfoNCE,
        kinds: _Kinds,
        radii: list[float],
        bins: int,
        chunk: int | None,
    ) -> None:
        self.sides, self.info_nce, self.kinds, self.radii = sides, info_nce, kinds, radii
        self.chunks = row_chunks(sides, chunk)
        self.stages = {"before": False} | ({"after": True} if sides.encoded is not None else {})
        self.losses = {stage: StreamedInfoNCE(info_nce) for stage in self.stages}
        self.ideal = {kind: [StreamedInfoNCE(info_nce) for _ in radii] for kind in TRUST_REGIONS}
        self.ideal_same_norm = StreamedInfoNCE(info_nce)
        self.slope = dict.fromkeys(TRUST_REGIONS, torch.zeros((), dtype=sides.wide_dtype))
        self.means = _Means()
        self.of_anchors: dict[str, list[Tensor]] = {}
        self.of_others: dict[str, Tensor] = {}
        self.right_anchors: dict[str, list[Tensor]] = {stage: [] for stage in self.stages}
        self.centroids: dict[str, Tensor] = {}
        self.num_right = 0
        self.bins = bins
        self.histograms: dict[str, StreamedHistogram] = {}
        self.longest = 0.0

    def run(self, num_texts: int, num_videos: int, anchor_norm: float) -> Analysis:
        for rows in self.chunks:
            pairs = self.sides.rows(rows)
            self.longest = max(self.longest, float(pairs.increment_norm.max()))
            for stage, corrected in self.stages.items():
                self.losses[stage].add(rows, State(pairs, corrected).similarity)
        for rows in self.chunks:
            self._second(rows, self.sides.rows(rows))
        per_anchor = {name: torch.cat(parts).cpu() for name, parts in self.of_anchors.items()}
        per_other = {
            name: (each / self.sides.shape[0]).cpu() for name, each in self.of_others.items()
        }
        exchanged = self.sides.corrects == "video"
        return Analysis(
            corrects=self.sides.corrects,
            num_texts=num_texts,
            num_videos=num_videos,
            scalars=self._scalars(per_anchor, anchor_norm),
            per_text=per_other if exchanged else per_anchor,
            per_video=per_anchor if exchanged else per_other,
            histograms={name: each.value for name, each in self.histograms.items()},
            radii=self.radii,
            loss_of_radius={
                kind: [float(each.value) for each in losses] for kind, losses in self.ideal.items()
            },
            slope={kind: float(each) for kind, each in self.slope.items()},
        )

    def _second(self, rows: slice, pairs: PairRows) -> None:
        right, near = self.kinds.of_rows(rows)
        self.num_right += int(right.sum())
        for stage, corrected in self.stages.items():
            state = State(pairs, corrected)
            column_logsumexp = self.losses[stage].column_logsumexp
            gradients = state.gradients(self.info_nce, rows, column_logsumexp)
            self._similarities(stage, gradients, right, near)
            self._conflict(stage, state, gradients)
            self._right_features(stage, state, right)
            if len(self.stages) > 1:
                name = "descent_cosine" if corrected else "ideal_cosine"
                cosine = gradients.descent_cosine(state.increment)
                self._of_pairs(name, cosine, right, -1.0, 1.0)
                self.means.add(f"{name}_weighted", cosine, gradients.norm)
            if not corrected:
                self._ideal(rows, pairs, gradients)
        if len(self.stages) > 1:
            norm = pairs.increment_norm
            self._of_pairs("increment_norm", norm, right, 0.0, self.longest)
            gap = ratio(pairs.increment_gap, norm * pairs.gap_norm)
            self._of_pairs("gap_cosine", gap, right, -1.0, 1.0)
            for name, values in (("increment_norm", norm), ("gap_cosine", gap)):
                self._note(name, values.mean(dim=1))
                self.of_others[name] = self.of_others.get(name, 0) + values.sum(dim=0)

    def _similarities(
        self, stage: str, gradients: RowGradients, right: Tensor, near: Tensor | None
    ) -> None:
        similarity = gradients.similarity
        self._of_pairs(f"similarity_{stage}", similarity, right, -1.0, 1.0)
        difference = gradients.probability_difference.abs()
        self._of_pairs(f"probability_difference_{stage}", difference, right, None, None)
        if near is not None:
            self.means.add(f"similarity_{stage}_near_duplicate", similarity, near)
            self.means.add(f"similarity_{stage}_other_wrong", similarity, ~(right | near))
            values = similarity[near]
            self._histogram(f"similarity_{stage}", "near-duplicate", values, -1.0, 1.0)
        hardest = similarity.masked_fill(right, -torch.inf).amax(dim=1)
        self._note(f"similarity_{stage}_hardest", hardest.where(hardest.isfinite(), torch.nan))

    def _conflict(self, stage: str, state: State, gradients: RowGradients) -> None:
        conflict, cosine = state.conflict(gradients)
        self._note(f"conflict_{stage}", conflict)
        self._note(f"gradient_cosine_{stage}", cosine)
        self._histogram("conflict", stage, conflict, 0.0, 1.0)

    def _right_features(self, stage: str, state: State, right: Tensor) -> None:
        """Normalized features of right pairs: their centroids, and those of each anchor."""
        weights = right.to(state.norm.dtype)
        of_anchor = ratio(weights, state.norm)
        pairs = state.pairs
        if state.corrected:
            anchors = pairs.sum_of_corrected(of_anchor)
        else:
            share = of_anchor.sum(dim=1, keepdim=True).to(pairs.anchors.dtype)
            anchors = share * pairs.anchors
        others = pairs.sum_of_others(ratio(weights, pairs.other_norm))
        for name, sums in (("anchor", anchors), ("other", others)):
            key = f"{name}_{stage}"
            self.centroids[key] = self.centroids.get(key, 0) + sums.sum(dim=0)
        self.right_anchors[stage].append(anchors[right.any(dim=1)])

    def _ideal(self, rows: slice, pairs: PairRows, gradients: RowGradients) -> None:
        """The loss with ideal increments in the place of the network's."""
        norm = gradients.norm
        self.slope["pair"] = self.slope["pair"] + norm.sum()
        self.slope["anchor"] = self.slope["anchor"] + norm.norm(dim=1).sum() * norm.shape[1] ** 0.5
        for kind, losses in self.ideal.items():
            unit = ideal_lengths(gradients, 1.0, kind)
            for radius, each in zip(self.radii, losses, strict=True):
                each.add(rows, similarity_after(gradients, radius * unit))
        lengths = ideal_lengths(gradients, pairs.increment_norm, "pair")
        self.ideal_same_norm.add(rows, similarity_after(gradients, lengths))

    def _of_pairs(
        self, name: str, values: Tensor, right: Tensor, low: float | None, high: float | None
    ) -> None:
        """The mean over right and wrong pairs, and between ends their histogram."""
        for kind, chosen in (("right", right), ("wrong", ~right)):
            self.means.add(f"{name}_{kind}", values, chosen)
            if low is not None and high is not None:
                self._histogram(name, kind, values[chosen], low, high)

    def _histogram(self, name: str, kind: str, values: Tensor, low: float, high: float) -> None:
        if name not in self.histograms:
            self.histograms[name] = StreamedHistogram(low, high, self.bins)
        self.histograms[name].add(kind, values)

    def _note(self, name: str, values: Tensor) -> None:
        """A number of each anchor."""
        self.of_anchors.setdefault(name, []).append(values)

    def _scalars(self, per_anchor: dict[str, Tensor], anchor_norm: float) -> dict[str, float]:
        found = {f"loss_{stage}": float(each.value) for stage, each in self.losses.items()}
        if "after" in self.stages:
            found["loss_ideal"] = float(self.ideal_same_norm.value)
        found["anchor_norm"] = anchor_norm
        found |= self.means.items()
        own = ("similarity_", "conflict_", "gradient_cosine_")
        found |= {
            name: float(values.nanmean())
            for name, values in per_anchor.items()
            if name.startswith(own)
        }
        sides = self.sides
        found["modality_gap"] = float(modality_gap(sides.anchors, sides.means))
        for stage in self.stages:
            anchor, other = (
                self.centroids[f"{name}_{stage}"] / self.num_right for name in ("anchor", "other")
            )
            found[f"right_gap_{stage}"] = float((anchor - other).norm())
            # Of unit vectors, the squared distance.
            found[f"alignment_{stage}"] = 2 - 2 * found[f"similarity_{stage}_right"]
            found[f"uniformity_{stage}"] = float(uniformity(torch.cat(self.right_anchors[stage])))
        found["uniformity_others"] = float(uniformity(F.normalize(sides.means, dim=1)))
        return found
