"""DiscoVLA's similarities and losses: golden numbers, written-out formulas, padding, memory."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import Tensor

import garevla
import garevla.discovla.losses
from garevla.discovla.losses import DiscoVLALoss, GareDiscoVLALoss, alignment_distillation
from garevla.discovla.similarity import frame_level_similarity, mean_frame_similarity
from garevla.head.similarity import encode
from garevla.reference import discovla as reference
from tests.head.test_memory import LargestTensor
from tests.helpers import GOLDEN, Golden, random_psi, relative_error

FILES = sorted(GOLDEN.glob("discovla_*.npz"))


def random_mask(batch: int, frames: int) -> Tensor:
    mask = torch.rand(batch, frames) < 0.6
    mask[torch.arange(batch), torch.randint(frames, (batch,))] = True
    return mask


def random_features(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64).requires_grad_()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_golden_values(path) -> None:
    golden = Golden(path)
    scale = golden.meta["logit_scale"]
    # As published, padded frames are candidates of the frame level.
    frame_similarity = frame_level_similarity(
        golden["frame_text_embed"], golden["frame_embed"], scale
    )
    video_similarity = mean_frame_similarity(
        golden["text_embed"], golden["frame_embed"], golden["video_mask"]
    )
    for value, name in (
        (frame_similarity, "frame_similarity"),
        (video_similarity, "video_similarity"),
        (garevla.info_nce(video_similarity, scale), "loss_video"),
        (garevla.info_nce(frame_similarity, scale), "loss_frame"),
        (alignment_distillation(frame_similarity, video_similarity, scale), "loss_distill"),
    ):
        assert relative_error(value, golden[name]) < 1e-5, name


def test_both_golden_files_are_here() -> None:
    assert len(FILES) == 2


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("sizes", [(1, 1, 1, 1), (3, 5, 2, 4), (7, 3, 5, 3), (13, 13, 12, 12)])
def test_frame_level_similarity(sizes: tuple[int, ...], masked: bool) -> None:
    num_texts, num_videos, num_captions, num_frames = sizes
    captions = random_features(num_texts, num_captions, 6)
    frames = random_features(num_videos, num_frames, 6)
    scale = torch.tensor(7.0, dtype=torch.float64, requires_grad=True)
    caption_mask = torch.ones(num_texts, num_captions, dtype=torch.bool)
    mask = torch.ones(num_videos, num_frames, dtype=torch.bool)
    given = (None, None)
    if masked:
        given = caption_mask, mask = (
            random_mask(num_texts, num_captions),
            random_mask(num_videos, num_frames),
        )
    got = frame_level_similarity(captions, frames, scale, *given)
    want = reference.frame_level_similarity(captions, frames, scale, caption_mask, mask)
    assert relative_error(got, want) < 1e-13
    weight = torch.randn_like(want)
    inputs = (captions, frames, scale)
    for a, b in zip(
        torch.autograd.grad((got * weight).sum(), inputs),
        torch.autograd.grad((want * weight).sum(), inputs),
        strict=True,
    ):
        assert relative_error(a, b) < 1e-12 or b.norm() < 1e-12


def test_frame_level_gradcheck() -> None:
    captions, frames = random_features(3, 2, 4), random_features(2, 3, 4)
    scale = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[True, True, False], [True, True, True]])
    assert torch.autograd.gradcheck(
        lambda c, f, s: frame_level_similarity(c, f, s, None, mask), (captions, frames, scale)
    )


@pytest.mark.parametrize("elements", [1, 500])
def test_chunks_change_nothing(elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    captions, frames = random_features(24, 2, 8), random_features(9, 3, 8)
    masks = random_mask(24, 2), random_mask(9, 3)

    def similarity_and_gradients() -> list[Tensor]:
        similarity = frame_level_similarity(captions, frames, 10.0, *masks)
        weight = torch.arange(9.0, dtype=torch.float64)
        return [similarity, *torch.autograd.grad((similarity * weight).sum(), (captions, frames))]

    whole = similarity_and_gradients()
    monkeypatch.setattr("garevla.ops.eager.frame_alignment.CHUNK_ELEMENTS", elements)
    for a, b in zip(whole, similarity_and_gradients(), strict=True):
        assert relative_error(a, b) < 1e-13


def measure(function, batch: int, num_frames: int) -> tuple[int, int]:
    """(elements of the largest tensor in forward and backward, elements that autograd saves)."""
    captions = torch.randn(batch, num_frames, 8, requires_grad=True)
    frames = torch.randn(batch, num_frames, 8, requires_grad=True)
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes() // 4
        return tensor

    with LargestTensor() as largest:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            similarity = function(captions, frames)
        similarity.sum().backward()
    return largest.elements, sum(saved.values())


@pytest.mark.parametrize("num_frames", [8, 16])
@pytest.mark.parametrize("masked", [False, True])
def test_memory_grows_as_texts_by_videos_by_frames(num_frames: int, masked: bool) -> None:
    batch = 48
    mask = torch.ones(batch, num_frames, dtype=torch.bool) if masked else None
    largest, saved = measure(
        lambda c, f: frame_level_similarity(c, f, 20.0, mask, mask), batch, num_frames
    )
    kept = batch * batch * num_frames
    assert largest <= kept
    # Two maxima with their places, and the few steps of two poolings.
    assert saved <= 12 * kept


def test_the_watch_sees_what_the_published_formula_holds() -> None:
    largest, saved = measure(lambda c, f: reference.frame_level_similarity(c, f, 20.0), 48, 16)
    assert largest >= 48 * 48 * 16 * 16
    assert saved >= 48 * 48 * 16 * 16


@pytest.mark.parametrize("variant", ["published", "mean_detached"])
@pytest.mark.parametrize("shape", [(5, 5), (6, 4)])
def test_distillation(variant: str, shape: tuple[int, int]) -> None:
    teacher, student = random_features(*shape), random_features(*shape)
    scale = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    value = alignment_distillation(teacher, student, scale, variant=variant)
    if variant == "mean_detached":
        rows, columns = reference.divergences(teacher.detach(), student, scale.detach())
        want = (rows.mean() + columns.mean()) / 2
        # The scale still learns from the student.
        assert relative_error(value, want) < 1e-13
        gradients = torch.autograd.grad(value, (student, scale, teacher), allow_unused=True)
        assert relative_error(gradients[0], torch.autograd.grad(want, student)[0]) < 1e-12
        assert gradients[1].abs() > 0
        assert gradients[2] is None
        return
    inputs = (teacher, student, scale)
    want = reference.alignment_distillation(*inputs)
    assert relative_error(value, want) < 1e-13
    for a, b in zip(
        torch.autograd.grad(value, inputs), torch.autograd.grad(want, inputs), strict=True
    ):
        assert relative_error(a, b) < 1e-12


def test_mean_distillation_does_not_know_the_batch_size() -> None:
    """Twice the batch, with nothing in common between its halves, has the same value."""
    teacher, student = torch.randn(4, 4), torch.randn(4, 4)

    def twice(similarity: Tensor) -> Tensor:
        far = torch.full((4, 4), -100.0)
        return torch.cat([torch.cat([similarity, far], 1), torch.cat([far, similarity], 1)])

    def value(variant: str, *similarities: Tensor) -> Tensor:
        return alignment_distillation(*similarities, 3.0, variant=variant)

    pair = twice(teacher), twice(student)
    one, two = value("mean_detached", teacher, student), value("mean_detached", *pair)
    assert relative_error(two, one) < 1e-5
    one, two = value("published", teacher, student), value("published", *pair)
    assert relative_error(two, one / 2) < 1e-5


def test_mean_frame_similarity() -> None:
    text, frames, mask = random_features(5, 6), random_features(4, 3, 6), random_mask(4, 3)
    want = reference.mean_frame_similarity(text, frames, mask)
    assert relative_error(mean_frame_similarity(text, frames, mask), want) < 1e-13


LOSSES = {
    "discovla": lambda **arguments: DiscoVLALoss(**arguments),
    "gare+discovla": lambda **arguments: GareDiscoVLALoss(random_psi(16), **arguments),
}


@pytest.fixture(params=LOSSES.values(), ids=LOSSES.keys())
def make_loss(request: pytest.FixtureRequest):
    return request.param


def batch_of(
    batch: int = 6, frames: int = 4, dim: int = 16
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return (
        torch.randn(batch, dim, requires_grad=True),
        torch.randn(batch, frames, dim, requires_grad=True),
        random_mask(batch, frames),
        torch.randn(batch, frames, dim, requires_grad=True),
    )


def test_discovla_loss_is_the_sum_of_its_terms() -> None:
    text, frames, mask, captions = batch_of()
    out = DiscoVLALoss(frame_weight=0.7, distillation_weight=2.0, distillation="mean_detached")(
        text, frames, 9.0, mask, captions, return_similarity=True
    )
    video_similarity = mean_frame_similarity(text, frames, mask)
    frame_similarity = frame_level_similarity(captions, frames, 9.0, mask, mask)
    assert torch.equal(out.similarity, video_similarity)
    assert not out.similarity.requires_grad
    assert torch.equal(out.contrastive, garevla.info_nce(video_similarity, 9.0))
    assert torch.equal(out.frame, garevla.info_nce(frame_similarity, 9.0))
    want = alignment_distillation(frame_similarity, video_similarity, 9.0, variant="mean_detached")
    assert torch.equal(out.distillation, want)
    total = out.contrastive + 0.7 * out.frame + 2.0 * out.distillation
    torch.testing.assert_close(out.loss, total)


@pytest.mark.parametrize("distillation", ["published", "mean_detached"])
def test_joint_loss(distillation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """GARE's loss plus the frame-level terms on GARE's similarity; gradients reach everything."""
    psi = random_psi(16).double()
    text, frames, captions = (
        random_features(6, 16),
        random_features(6, 4, 16),
        random_features(6, 4, 16),
    )
    mask = random_mask(6, 4)
    scale = torch.tensor(9.0, dtype=torch.float64, requires_grad=True)
    arguments = {"beta": 0.01, "pool_temperature": 2.0, "lambda_direction": 0.3}
    inputs = (text, frames, captions, scale, *psi.parameters())

    gare = garevla.GareLoss(psi, **arguments)(text, frames, scale, mask)
    similarity = garevla.gare_similarity(text, frames, psi, mask, pool_temperature=2.0)
    teacher = reference.frame_level_similarity(captions, frames, scale, mask, mask)
    want = gare.loss + 0.3 * garevla.info_nce(teacher, scale)
    want = want + alignment_distillation(teacher, similarity, scale, variant=distillation)

    calls = []
    monkeypatch.setattr(
        "garevla.head.losses.encode",
        lambda *arguments: calls.append(1) or encode(*arguments),
    )
    loss = GareDiscoVLALoss(psi, distillation=distillation, **arguments)
    out = loss(text, frames, scale, mask, captions, return_similarity=True)
    assert len(calls) == 1
    assert relative_error(out.loss, want) < 1e-12
    assert relative_error(out.similarity, similarity) < 1e-13
    for name in ("contrastive", "bottleneck", "direction", "trust_region"):
        assert relative_error(getattr(out, name), getattr(gare, name)) < 1e-13
    largest = 0.0
    for a, b in zip(
        torch.autograd.grad(out.loss, inputs), torch.autograd.grad(want, inputs), strict=True
    ):
        largest = max(largest, float(b.norm()))
        # The key bias has a true gradient of 0.
        assert relative_error(a, b) < 1e-9 or b.norm() < 1e-12 * largest


def test_distillation_teaches_psi() -> None:
    psi = random_psi(16)
    text, frames, mask, captions = batch_of()
    loss = GareDiscoVLALoss(psi, beta=0, lambda_direction=0, lambda_trust=0, frame_weight=0)
    out = loss(text, frames, 9.0, mask, captions)
    assert (out.frame, out.bottleneck, out.direction, out.trust_region) == (None,) * 4
    gradient = torch.autograd.grad(out.distillation, psi.mean_proj.weight)[0]
    assert gradient.norm() > 0


def test_without_pseudo_captions(make_loss, caplog: pytest.LogCaptureFixture) -> None:
    text, frames, mask, _ = batch_of()
    loss = make_loss()
    with caplog.at_level(logging.INFO):
        outs = [loss(text, frames, 9.0, mask) for _ in range(3)]
    said = [record for record in caplog.records if "no pseudo captions" in record.message]
    assert len(said) == 1
    assert all((out.frame, out.distillation) == (None, None) for out in outs)
    if isinstance(loss, GareDiscoVLALoss):
        gare = garevla.GareLoss(loss.psi)(text, frames, 9.0, mask)
        assert torch.equal(outs[0].loss, gare.loss)
    else:
        assert torch.equal(outs[0].loss, outs[0].contrastive)


def test_terms_of_weight_zero_are_not_computed(
    make_loss, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, frames, mask, captions = batch_of()
    out = make_loss(distillation_weight=0)(text, frames, 9.0, mask, captions)
    assert out.distillation is None
    assert out.frame is not None
    out = make_loss(frame_weight=0)(text, frames, 9.0, mask, captions)
    assert out.frame is None
    assert out.distillation is not None
    monkeypatch.delattr("garevla.discovla.losses.frame_level_similarity")
    off = make_loss(frame_weight=0, distillation_weight=0)
    with caplog.at_level(logging.INFO):
        for given in (captions, None):
            out = off(text, frames, 9.0, mask, given)
            assert (out.frame, out.distillation) == (None, None)
    assert not caplog.records


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), 1e6])
def test_padding_takes_no_part(make_loss, poison: float) -> None:
    loss = make_loss()
    text, frames, mask, captions = batch_of()
    scale = torch.tensor(9.0, requires_grad=True)

    def loss_and_gradients(*padded: Tensor) -> list[Tensor]:
        inputs = [text, *(x.detach().clone().requires_grad_() for x in padded), scale]
        value = loss(inputs[0], inputs[1], scale, mask, inputs[2]).loss
        gradients = torch.autograd.grad(value, [*inputs, *loss.parameters()])
        assert not any(gradient[~mask].any() for gradient in gradients[1:3])
        return [value, *gradients]

    assert not mask.all()
    padding = ~mask.unsqueeze(2)
    clean = loss_and_gradients(frames, captions)
    poisoned = loss_and_gradients(
        frames.masked_fill(padding, poison), captions.masked_fill(padding, poison)
    )
    for a, b in zip(clean, poisoned, strict=True):
        assert torch.equal(a, b)


def test_several_texts_a_video(make_loss) -> None:
    text, _, _, captions = batch_of(5)
    _, frames, mask, _ = batch_of(3)
    targets = torch.tensor([2, 0, 1, 2, 0])
    out = make_loss()(text, frames, 9.0, mask, captions, targets=targets, return_similarity=True)
    similarity = frame_level_similarity(captions, frames, 9.0, mask[targets], mask)
    assert torch.equal(out.frame, garevla.info_nce(similarity, 9.0, targets))
    assert torch.equal(out.contrastive, garevla.info_nce(out.similarity, 9.0, targets))


def test_half_precision_is_computed_in_float32() -> None:
    text, frames, mask, captions = batch_of()
    half = [x.detach().bfloat16() for x in (text, frames, captions)]
    exact = [x.float() for x in half]
    loss = DiscoVLALoss()
    with torch.autocast("cpu", torch.bfloat16):
        out = loss(half[0], half[1], 9.0, mask, half[2])
        assert torch.equal(out.loss, loss(exact[0], exact[1], 9.0, mask, exact[2]).loss)
    assert out.loss.dtype == torch.float32


def test_wrong_arguments_are_named(make_loss) -> None:
    text, frames, mask, captions = batch_of()
    loss = make_loss()
    with pytest.raises(ValueError, match=r"pseudo_caption_features must have shape \(6, F, D\)"):
        loss(text, frames, 9.0, mask, captions[:5])
    with pytest.raises(ValueError, match=r"pseudo_caption_features must be .*\(A, F, D\)"):
        loss(text, frames, 9.0, mask, captions[:, 0])
    with pytest.raises(ValueError, match=r"caption_mask must have shape \(A, F\) = \(6, 3\)"):
        loss(text, frames, 9.0, mask, captions[:, :3])
    with pytest.raises(ValueError, match=r"frame_features must have shape \(B, F, 8\)"):
        frame_level_similarity(captions[..., :8], frames, 9.0)
    with pytest.raises(ValueError, match="no valid frame"):
        frame_level_similarity(captions, frames, 9.0, None, torch.zeros_like(mask))
    with pytest.raises(ValueError, match="share one shape"):
        alignment_distillation(torch.zeros(2, 3), torch.zeros(3, 2), 9.0)
    with pytest.raises(ValueError, match="distillation must be one of"):
        make_loss(distillation="batch")
    with pytest.raises(ValueError, match="distillation must be one of"):
        alignment_distillation(torch.zeros(2, 2), torch.zeros(2, 2), 9.0, variant="batch")
    with pytest.raises(ValueError, match="frame_weight must be a finite number"):
        make_loss(frame_weight=-1.0)
    with pytest.raises(ValueError, match="distillation_weight must be a finite number"):
        make_loss(distillation_weight=float("nan"))


def test_training_lowers_the_loss(make_loss) -> None:
    text, frames, mask, captions = batch_of(8)
    loss = make_loss()
    optimiser = torch.optim.Adam([text, frames, captions, *loss.parameters()], lr=0.05)
    values = []
    for _ in range(30):
        optimiser.zero_grad()
        value = loss(text, frames, 20.0, mask, captions).loss
        value.backward()
        optimiser.step()
        values.append(value.item())
    assert values[-1] < 0.3 * values[0]
