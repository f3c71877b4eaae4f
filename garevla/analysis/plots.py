"""The plots of a report, and what to look for in each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from garevla.analysis.drawing import BLUE, GRAY, GREEN, ORANGE, draw, histogram, legend_above, lines

_BEFORE, _AFTER = "without increments", "with increments"


@dataclass(frozen=True)
class Plot:
    """A plot of a report.

    Attributes:
        name: its own on the page.
        title: a few words.
        look_for: a sentence.
        svg: the picture, an element of HTML.
    """

    name: str
    title: str
    look_for: str
    svg: str


@dataclass(frozen=True)
class _Epochs:
    """Scalars over epochs: by label the name, a color and a line style."""

    title: str
    y_label: str
    series: Mapping[str, tuple[str, str, str]]
    look_for: str


_OVER_EPOCHS = {
    "loss": _Epochs(
        "InfoNCE",
        "loss",
        {
            _BEFORE: ("loss_before", GRAY, "-"),
            _AFTER: ("loss_after", BLUE, "-"),
            "with ideal ones as long": ("loss_ideal", GREEN, "--"),
        },
        "The distance of the upper two lines is what increments bring at this temperature; the "
        "dashed one is the first-order ideal of the same lengths, which knows the right answers "
        "and is no aim that can be reached. Where the line with increments rises while training "
        "goes on, the model learns its training set by heart.",
    ),
    "norms": _Epochs(
        "Length of increments",
        "length",
        {
            "right pairs": ("increment_norm_right", BLUE, "-"),
            "wrong pairs": ("increment_norm_wrong", ORANGE, "-"),
            "what is corrected": ("anchor_norm", GRAY, ":"),
        },
        "Lengths of right and wrong pairs should part, else increments move all alike; far above "
        "the dotted line they do not correct the features but replace them.",
    ),
    "directions": _Epochs(
        "Agreement with descent",
        "cosine",
        {
            "ideal, right pairs": ("ideal_cosine_right", BLUE, "-"),
            "ideal, wrong pairs": ("ideal_cosine_wrong", ORANGE, "-"),
            "ideal, by gradients": ("ideal_cosine_weighted", GREEN, "-"),
            "descent left, by gradients": ("descent_cosine_weighted", GRAY, "--"),
        },
        "Above 0, increments point where the loss falls. What moves all pairs of a feature alike "
        "changes nothing, so the line by gradients, in which pairs have the weight that the loss "
        "gives them, is the one to look at. The dashed line is taken where the increments have "
        "led to: near 0 there is nothing more to gain along them, below 0 they go too far.",
    ),
    "gap": _Epochs(
        "Angle to the gap",
        "cosine with the gap",
        {
            "right pairs": ("gap_cosine_right", BLUE, "-"),
            "wrong pairs": ("gap_cosine_wrong", ORANGE, "-"),
        },
        "Above 0, increments lead across the gap to the other modality. If both lines are one, "
        "they close the gap for all pairs alike and tell nothing apart; right pairs should lie "
        "above wrong ones.",
    ),
    "conflict": _Epochs(
        "Conflict of gradients",
        "1 − ‖Σ g‖ / Σ ‖g‖",
        {
            _BEFORE: ("conflict_before", GRAY, "-"),
            _AFTER: ("conflict_after", BLUE, "-"),
        },
        "How much of the pairs' pulls on one feature cancels: 0 is none, 1 all. The paper's claim "
        "is that increments take the conflict over, so that the line with increments lies lower.",
    ),
    "probabilities": _Epochs(
        "Difference of probabilities |η − α|",
        "|η − α| of right pairs",
        {
            _BEFORE: ("probability_difference_before_right", GRAY, "-"),
            _AFTER: ("probability_difference_after_right", BLUE, "-"),
        },
        "How differently a pair counts among the videos of its text and among the texts of its "
        "video: large values are pairs on which both directions of the loss disagree. Near 0 both "
        "are sure, or both are lost.",
    ),
    "modality": _Epochs(
        "Modality gap",
        "distance of centroids",
        {
            "all features": ("modality_gap", ORANGE, ":"),
            f"right pairs, {_BEFORE}": ("right_gap_before", GRAY, "-"),
            f"right pairs, {_AFTER}": ("right_gap_after", BLUE, "-"),
        },
        "The distance of the means of normalized texts and videos. Increments should bring right "
        "pairs' lines down; the dotted one, of the features alone, need not fall for that.",
    ),
    "alignment": _Epochs(
        "Alignment",
        "mean squared distance",
        {
            _BEFORE: ("alignment_before", GRAY, "-"),
            _AFTER: ("alignment_after", BLUE, "-"),
        },
        "The distance of right pairs on the sphere: the lower the better, as long as uniformity "
        "does not rise for it. Increments that push all pairs apart, wrong ones further, raise it "
        "and still lower the loss.",
    ),
    "uniformity": _Epochs(
        "Uniformity",
        "log mean exp(−2 d²)",
        {
            f"corrected side, {_BEFORE}": ("uniformity_before", GRAY, "-"),
            f"corrected side, {_AFTER}": ("uniformity_after", BLUE, "-"),
            "other side": ("uniformity_others", ORANGE, ":"),
        },
        "The lower, the more evenly features fill the sphere; near 0 they have fallen together. "
        "Increments that raise it make queries alike.",
    ),
    "similarity": _Epochs(
        "Similarity of right and hardest wrong pairs",
        "cosine",
        {
            f"right, {_BEFORE}": ("similarity_before_right", BLUE, "--"),
            f"right, {_AFTER}": ("similarity_after_right", BLUE, "-"),
            f"hardest, {_BEFORE}": ("similarity_before_hardest", ORANGE, "--"),
            f"hardest, {_AFTER}": ("similarity_after_hardest", ORANGE, "-"),
        },
        "Blue over orange, and further on the solid lines than on the dashed ones: by as much is "
        "the right answer ahead of the best wrong one.",
    ),
}


def plots_over_epochs(records: Sequence[Mapping[str, Any]]) -> list[Plot]:
    """Plots of a run's records of kind ``analysis``; lines without numbers are left out, and plots
    whose first line is."""
    epochs = [record["epoch"] for record in records]
    found = []
    for name, plot in _OVER_EPOCHS.items():
        series = {
            label: ([record["scalars"].get(key) for record in records], color, style)
            for label, (key, color, style) in plot.series.items()
        }
        series = {k: v for k, v in series.items() if any(x is not None for x in v[0])}
        # What a plot is about comes first.
        if next(iter(plot.series)) in series:
            shown = partial(
                lines,
                x=epochs,
                series=series,
                x_label="epoch",
                y_label=plot.y_label,
                whole_numbers=True,
            )
            found.append(_plot(f"epochs-{name}", plot.title, plot.look_for, shown))
    return found


def plots_of(prefix: str, analysis: Mapping[str, Any]) -> list[Plot]:
    """Plots of one analysis.

    Args:
        prefix: of the plots' names.
        analysis: as :meth:`garevla.analysis.Analysis.as_dict`.
    """
    found = [
        _plot(
            f"{prefix}-radius",
            "InfoNCE with ideal increments",
            "Ideal increments of growing radius, which follow their first-order promise (dotted) "
            "as far as that holds. One ball for all increments of a feature spends its length on "
            "the few pairs that matter, and falls faster. The cross is what the network's "
            "increments come to at their own length: the ideal ones know the right answers.",
            partial(_radius, analysis=analysis),
        )
    ]
    histograms = analysis["histograms"]
    for name, title, x_label, series, look_for in _DISTRIBUTIONS:
        shown = {label: of for label, of in series.items() if _counted(histograms, of)}
        if next(iter(series)) in shown:
            plot = partial(histogram, found=histograms, series=shown, x_label=x_label)
            found.append(_plot(f"{prefix}-{name}", title, look_for, plot))
    return found


def _counted(histograms: Mapping[str, Any], of: tuple[str, str, str]) -> bool:
    return of[0] in histograms and of[1] in histograms[of[0]]["counts"]


def _pairs(name: str) -> dict[str, tuple[str, str, str]]:
    return {"right pairs": (name, "right", BLUE), "wrong pairs": (name, "wrong", ORANGE)}


_DISTRIBUTIONS = (
    (
        "norms",
        "Length of increments",
        "length",
        _pairs("increment_norm"),
        "Two hills apart say that the network tells right from wrong pairs by its lengths; one "
        "narrow hill says that all increments are as long, and only their directions count.",
    ),
    (
        "ideal",
        "Angle to the ideal increment",
        "cosine",
        _pairs("ideal_cosine"),
        "Above 0 an increment lowers the loss to first order. Wrong pairs on the left of 0 are "
        "drawn nearer instead of pushed away.",
    ),
    (
        "descent",
        "Angle to the descent that is left",
        "cosine",
        _pairs("descent_cosine"),
        "The same where the increments have led to: right of 0 more of the same would lower the "
        "loss further, left of 0 less would.",
    ),
    (
        "gap",
        "Angle to the gap",
        "cosine",
        _pairs("gap_cosine"),
        "Right pairs further to the right than wrong ones: increments cross the gap where they "
        "should.",
    ),
    (
        "similarity",
        "Similarity",
        "cosine",
        {
            f"right, {_BEFORE}": ("similarity_before", "right", GRAY),
            f"right, {_AFTER}": ("similarity_after", "right", BLUE),
            f"wrong, {_BEFORE}": ("similarity_before", "wrong", GREEN),
            f"wrong, {_AFTER}": ("similarity_after", "wrong", ORANGE),
        },
        "With increments the hills of right and wrong pairs should overlap less than without.",
    ),
    (
        "near",
        "Similarity of near-duplicates",
        "cosine",
        {
            f"near-duplicates, {_BEFORE}": ("similarity_before", "near-duplicate", GRAY),
            f"near-duplicates, {_AFTER}": ("similarity_after", "near-duplicate", ORANGE),
            f"right, {_AFTER}": ("similarity_after", "right", BLUE),
        },
        "Wrong pairs whose video shows nearly what the right one does, the likeliest false "
        "negatives. Where they are as right as the right ones they should stay near these, with "
        "increments no less than without; where a detail tells them apart, they should part.",
    ),
    (
        "conflict",
        "Conflict of gradients",
        "1 − ‖Σ g‖ / Σ ‖g‖ of a feature",
        {
            _BEFORE: ("conflict", "before", GRAY),
            _AFTER: ("conflict", "after", BLUE),
        },
        "A hill that moves to the left with increments is conflict that the features are rid of.",
    ),
)


def _radius(axes: Any, analysis: Mapping[str, Any]) -> None:
    scalars, radii = analysis["scalars"], analysis["radii"]
    start = scalars["loss_before"]
    axes.axhline(start, color=GRAY, linewidth=1.2, label=_BEFORE)
    for kind, label, color in (
        ("pair", "a ball for each pair", GREEN),
        ("anchor", "a ball for each feature", BLUE),
    ):
        losses = analysis["loss_of_radius"][kind]
        axes.plot(radii, losses, color=color, marker="o", markersize=3, label=label)
        # A straight line, which the logarithmic axis bends.
        slope, steps = analysis["slope"][kind], 100
        last = min(radii[-1], start / slope) if slope > 0 else radii[0]
        line = [radii[0] + (last - radii[0]) * index / steps for index in range(steps + 1)]
        expected = [start - slope * radius for radius in line]
        axes.plot(line, expected, ":", color=color, linewidth=1.2)
    if scalars.get("increment_norm_wrong") is not None:
        axes.plot(
            scalars["increment_norm_wrong"],
            scalars["loss_after"],
            "x",
            color=ORANGE,
            markersize=8,
            markeredgewidth=2,
            label="the network's",
        )
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("radius of the trust region")
    axes.set_ylabel("loss")
    legend_above(axes)


def _plot(name: str, title: str, look_for: str, plot: Callable[[Any], None]) -> Plot:
    return Plot(name, title, look_for, draw(name, title, plot))
