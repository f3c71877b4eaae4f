"""Every figure against its direct form in float64, in which all increments exist."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import garevla
from garevla.analysis import (
    Analysis,
    alignment,
    analyse,
    ideal_increments,
    modality_gap,
    uniformity,
)
from garevla.discovla.losses import DiscoVLALoss
from garevla.increments.products import DenseProducts
from garevla.reference import gare as reference
from tests.analysis import naive
from tests.analysis.naive import Naive
from tests.head.test_memory import LargestTensor

TEXTS, VIDEOS, FRAMES, WORDS, DIM, SCALE = 7, 5, 3, 4, 12, 9.0
CASES = [
    (psi, corrects)
    for psi in ("cross attention", "heads", "gap MLP")
    for corrects in ("text", "video")
]


@dataclass
class Case:
    loss: garevla.GareLoss | DiscoVLALoss
    texts: Any
    frames: Tensor
    mask: Tensor
    targets: Tensor
    naive: Naive

    def analyse(self, **options: Any) -> Analysis:
        arguments = self.texts, self.frames, SCALE, self.mask
        return analyse(self.loss, *arguments, targets=self.targets, **options)

    def ideal(self, **options: Any) -> Tensor:
        """Δ* as anchors by others."""
        arguments = self.texts, self.frames, SCALE, self.mask
        found = ideal_increments(self.loss, *arguments, targets=self.targets, **options)
        return found.transpose(0, 1) if self.naive.exchanged else found


def make_case(psi_name: str, corrects: str) -> Case:
    torch.manual_seed(3)
    double = {"dtype": torch.float64}
    if psi_name == "gap MLP":
        psi: Any = garevla.GapMLPPsi(DIM, 8)
    else:
        psi = garevla.CrossAttentionPsi(DIM, 2 if psi_name == "heads" else 1, dropout=0.3)
    psi = psi.double()
    with torch.no_grad():
        for parameter in psi.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    text, frames = torch.randn(TEXTS, DIM, **double), torch.randn(VIDEOS, FRAMES, DIM, **double)
    mask = torch.tensor([[1, 1, 1], [1, 0, 1], [1, 0, 0], [1, 1, 1], [0, 1, 1]]).bool()
    words = torch.randn(TEXTS, WORDS, DIM, **double)
    word_mask = torch.arange(WORDS) < torch.tensor([4, 2, 3, 1, 4, 4, 2]).unsqueeze(1)
    # A video with several texts, and one with none.
    targets = torch.tensor([0, 1, 2, 4, 1, 0, 1])
    loss = garevla.GareLoss(psi, corrects=corrects, pool_temperature=0.7, backend="eager")
    filled = frames.masked_fill(~mask.unsqueeze(2), 0)
    mean = filled.sum(1) / mask.sum(1, keepdim=True)
    psi.eval()
    texts: Any = text
    with torch.no_grad():
        if corrects == "video":
            texts = garevla.Texts(
                text, words.masked_fill(~word_mask.unsqueeze(2), torch.nan), word_mask
            )
            arguments = text, words, word_mask, frames, mask
            pairs = reference.video_corrected_pairs(*arguments, psi)
            others = text.expand(VIDEOS, -1, -1)
            direct = Naive(
                mean, others, text, pairs.increments.transpose(0, 1), targets, SCALE, True
            )
        else:
            pairs = reference.pairs(text, frames, psi, mask, pool_temperature=0.7)
            pool = torch.einsum("ad,bfd->abf", text, filled) / 0.7
            pool = pool.masked_fill(~mask, -torch.inf).softmax(2)
            others = torch.einsum("abf,bfd->abd", pool, filled)
            direct = Naive(text, others, mean, pairs.increments, targets, SCALE, False)
    psi.train()
    poisoned = frames.masked_fill(~mask.unsqueeze(2), torch.nan)
    return Case(loss, texts, poisoned, mask, targets, direct)


@pytest.fixture(params=CASES, ids=" ".join, scope="module")
def case(request: pytest.FixtureRequest) -> Case:
    return make_case(*request.param)


def close(actual: Tensor | float, expected: Tensor | float) -> bool:
    actual, expected = (torch.as_tensor(x, dtype=torch.float64) for x in (actual, expected))
    return actual.shape == expected.shape and bool(
        (actual - expected).norm() <= 1e-9 * expected.norm() + 1e-13
    )


def test_figures_of_pairs(case: Case):
    found, right = case.analyse(), case.naive.right
    for name, values in case.naive.pair_values().items():
        assert close(found.scalars[f"{name}_right"], values[right].mean()), name
        assert close(found.scalars[f"{name}_wrong"], values[~right].mean()), name
    assert found.corrects == ("video" if case.naive.exchanged else "text")
    assert (found.num_texts, found.num_videos) == (TEXTS, VIDEOS)
    assert case.loss.psi.training  # as it was


def test_figures_of_texts_and_videos(case: Case):
    found, direct = case.analyse(), case.naive
    values = direct.pair_values()
    anchors, others = found.per_text, found.per_video
    if direct.exchanged:
        anchors, others = others, anchors
    for name in ("increment_norm", "gap_cosine"):
        assert close(anchors[name], values[name].mean(dim=1)), name
        assert close(others[name], values[name].mean(dim=0)), name
    for stage in ("before", "after"):
        hardest = values[f"similarity_{stage}"].masked_fill(direct.right, -9).amax(dim=1)
        assert close(anchors[f"similarity_{stage}_hardest"], hardest)
        assert close(found.scalars[f"similarity_{stage}_hardest"], hardest.mean())


def test_losses_and_cosines_weighted_by_gradients(case: Case):
    found, direct = case.analyse().scalars, case.naive
    zero, delta = torch.zeros_like(direct.increments), direct.increments
    assert close(found["loss_before"], direct.loss(zero))
    assert close(found["loss_after"], direct.loss(delta))
    assert close(found["loss_ideal"], direct.loss(direct.ideal(delta.norm(dim=2))))
    values = direct.pair_values()
    for name, at in (("ideal_cosine", zero), ("descent_cosine", delta)):
        weights = direct.gradient(at).norm(dim=2)
        expected = (values[name] * weights).sum() / weights.sum()
        assert close(found[f"{name}_weighted"], expected), name


def test_conflict_of_gradients(case: Case):
    found, direct = case.analyse(), case.naive
    anchors = found.per_video if direct.exchanged else found.per_text
    for stage, share in (("before", 0.0), ("after", 1.0)):
        conflict, cosine = direct.conflict(share * direct.increments)
        assert close(anchors[f"conflict_{stage}"], torch.tensor(conflict, dtype=torch.float64))
        assert close(anchors[f"gradient_cosine_{stage}"], torch.tensor(cosine, dtype=torch.float64))
        assert close(found.scalars[f"conflict_{stage}"], sum(conflict) / len(conflict))


def test_figures_of_features(case: Case):
    found, direct = case.analyse().scalars, case.naive
    assert close(found["modality_gap"], modality_gap(direct.anchors, direct.means))
    assert close(found["uniformity_others"], naive.uniformity(direct.means))
    assert close(found["anchor_norm"], direct.anchors.norm(dim=1).mean())
    for stage, share in (("before", 0.0), ("after", 1.0)):
        anchors, others, own = direct.right_features(share * direct.increments)
        assert close(found[f"right_gap_{stage}"], (anchors.mean(0) - others.mean(0)).norm())
        assert close(found[f"alignment_{stage}"], alignment(anchors, others))
        assert close(found[f"uniformity_{stage}"], naive.uniformity(own))


def test_near_duplicates(case: Case):
    groups, direct = torch.tensor([0, 1, 0, 1, 4]), case.naive
    analysis = case.analyse(groups=groups)
    found, histograms = analysis.scalars, analysis.histograms
    of_video, of_text = groups, groups[case.targets]
    sides = (of_video, of_text) if direct.exchanged else (of_text, of_video)
    near = (sides[0].unsqueeze(1) == sides[1]) & ~direct.right
    assert near.any()
    for stage in ("before", "after"):
        similarity = direct.pair_values()[f"similarity_{stage}"]
        key = f"similarity_{stage}"
        assert close(found[f"{key}_near_duplicate"], similarity[near].mean())
        assert close(found[f"{key}_other_wrong"], similarity[~near & ~direct.right].mean())
        counts = histograms[key].counts
        assert sum(counts["near-duplicate"]) == near.sum()


def test_chunks_change_nothing(case: Case):
    whole, cut = (case.analyse(chunk=chunk) for chunk in (100, 2))
    for name, value in whole.scalars.items():
        assert close(cut.scalars[name], value), name
    for kind in ("pair", "anchor"):
        assert close(
            torch.tensor(cut.loss_of_radius[kind]), torch.tensor(whole.loss_of_radius[kind])
        )
    for name in whole.per_text:
        assert close(cut.per_text[name].nan_to_num(), whole.per_text[name].nan_to_num()), name
    assert cut.histograms == whole.histograms


def test_histograms_count_every_pair(case: Case):
    found, direct = case.analyse(bins=8), case.naive
    norms = direct.increments.norm(dim=2)
    histogram = found.histograms["increment_norm"]
    assert close(histogram.high, norms.max())
    for kind, chosen in (("right", direct.right), ("wrong", ~direct.right)):
        inside = (norms[chosen] / norms.max() * 8).floor().clamp(max=7).long()
        assert histogram.counts[kind] == torch.bincount(inside, minlength=8).tolist()
    conflict = found.histograms["conflict"].counts
    assert sum(conflict["before"]) == sum(conflict["after"]) == len(direct.anchors)


# The ideal increment.


def lengths_of(case: Case, radius: float, trust_region: str) -> Tensor:
    direct = case.naive
    norm = direct.gradient(torch.zeros_like(direct.increments)).norm(dim=2)
    if trust_region == "pair":
        return torch.full_like(norm, radius)
    return radius * norm.shape[1] ** 0.5 * norm / norm.norm(dim=1, keepdim=True)


@pytest.mark.parametrize("trust_region", ["pair", "anchor"])
def test_ideal_increments_and_their_loss(case: Case, trust_region: str):
    radii = [0.01, 0.5, 3.0]
    losses = case.analyse(radii=radii).loss_of_radius[trust_region]
    for radius, loss in zip(radii, losses, strict=True):
        ideal = case.ideal(radius=radius, trust_region=trust_region)
        assert close(ideal, case.naive.ideal(lengths_of(case, radius, trust_region)))
        assert close(loss, case.naive.loss(ideal))
        # The trust region holds, and is made use of.
        norms = ideal.norm(dim=2)
        used = norms if trust_region == "pair" else norms.square().mean(dim=1).sqrt()
        assert close(used, torch.full_like(used, radius))


@pytest.mark.parametrize("trust_region", ["pair", "anchor"])
def test_the_loss_falls_along_the_ideal_increment(case: Case, trust_region: str):
    """By finite differences, as fast as is said, and faster than in any direction drawn of the same
    trust region."""
    direct, step = case.naive, 1e-5
    unit = case.ideal(radius=1.0, trust_region=trust_region)

    def slope(direction: Tensor) -> float:
        return float(direct.loss(step * direction) - direct.loss(-step * direction)) / (2 * step)

    said = case.analyse().slope[trust_region]
    assert said > 0
    assert abs(-slope(unit) - said) <= 1e-7 * said
    assert direct.loss(0.01 * unit) < direct.loss(0 * unit)
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        drawn = torch.randn(unit.shape, generator=generator, dtype=torch.float64)
        if trust_region == "pair":
            drawn = F.normalize(drawn, dim=2)
        else:
            drawn = F.normalize(drawn.flatten(1), dim=1).view_as(drawn) * drawn.shape[1] ** 0.5
        assert slope(drawn) > slope(unit)
        # So does one that is nearly the ideal.
        assert slope(0.99 * unit + 0.01 * drawn) > slope(unit)


# Without increments, and other arguments.


def test_discovla_has_no_increments():
    torch.manual_seed(0)
    text, frames = torch.randn(6, 8).double(), torch.randn(4, 3, 8).double()
    mask = torch.tensor([[1, 1, 1], [1, 0, 0], [1, 1, 0], [0, 1, 1]])
    targets = torch.tensor([0, 1, 2, 3, 0, 1])
    loss = DiscoVLALoss()
    found = analyse(loss, text, frames, SCALE, mask, targets=targets)
    similarity = loss.similarity(text, frames, mask)
    assert close(found.scalars["loss_before"], garevla.info_nce(similarity, SCALE, targets))
    right = similarity.gather(1, targets.unsqueeze(1)).mean()
    assert close(found.scalars["similarity_before_right"], right)
    assert found.corrects is None
    assert not [name for name in found.scalars if "after" in name or "increment" in name]
    assert found.loss_of_radius["pair"][0] < found.scalars["loss_before"]


def test_float32_is_as_good_as_float32_can_be():
    case = make_case("cross attention", "text")
    exact = case.analyse()
    loss = garevla.GareLoss(case.loss.psi.float(), pool_temperature=0.7, backend="eager")
    arguments = case.texts.float(), case.frames.float(), SCALE, case.mask
    found = analyse(loss, *arguments, targets=case.targets)
    for name, value in exact.scalars.items():
        assert found.scalars[name] == pytest.approx(value, rel=1e-4, abs=1e-5), name


def test_one_product_for_all_networks():
    case = make_case("heads", "text")
    loss = case.loss
    loss.psi.eval()
    pairs = garevla.gare_pairs(case.texts, case.frames, loss.psi, case.mask)
    factored, dense = pairs.increments.products(), DenseProducts(pairs.increments.materialize())
    vectors, weights = torch.randn(VIDEOS, 2, DIM).double(), torch.randn(TEXTS, VIDEOS).double()
    assert close(factored.with_texts(case.texts), dense.with_texts(case.texts))
    assert close(factored.with_videos(vectors), dense.with_videos(vectors))
    assert close(factored.sums(weights), dense.sums(weights))


def test_uniformity_in_pieces(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("garevla.analysis.features._AT_ONCE", 30)
    features = torch.randn(11, 6).double()
    assert close(uniformity(features), naive.uniformity(features))
    assert uniformity(features[:1]).isnan()


def test_arguments():
    case = make_case("cross attention", "text")
    with pytest.raises(ValueError, match=r"groups must have shape \(B,\) = \(5,\)"):
        case.analyse(groups=torch.zeros(3))
    with pytest.raises(ValueError, match="radii must be positive"):
        case.analyse(radii=[0.0])
    with pytest.raises(ValueError, match="trust_region must be one of"):
        case.ideal(radius=1.0, trust_region="ball")
    with pytest.raises(ValueError, match="radius must be"):
        case.ideal(radius=-1.0)
    with pytest.raises(TypeError, match="loss must be a garevla"):
        analyse(torch.nn.Linear(2, 2), case.texts, case.frames, SCALE)
    with pytest.raises(ValueError, match="give targets"):
        analyse(case.loss, case.texts, case.frames, SCALE, case.mask)
    kept = garevla.encode_videos(case.frames, case.loss.psi.eval(), case.mask)
    with pytest.raises(TypeError, match="not kept videos"):
        analyse(case.loss, case.texts, kept, SCALE)


def test_no_vector_per_pair_with_increments_of_low_rank():
    num, dim = 40, 256
    loss = garevla.GareLoss(garevla.CrossAttentionPsi(dim), backend="eager")
    text, frames = torch.randn(num, dim), torch.randn(num, 2, dim)
    with LargestTensor() as largest:
        analyse(loss, text, frames, 10.0, chunk=num)
    # ψ's weights, and the frames' keys and basis.
    expected = max(dim * dim, num * 8 * dim)
    assert expected <= largest.elements <= 2 * expected < num * num * dim / 2
