"""The frame-level similarity in Triton, against its eager namesake."""

from __future__ import annotations

import importlib
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

import garevla
from garevla.discovla.similarity import frame_level_similarity
from garevla.kernels import launching
from tests.head.test_memory import LargestTensor
from tests.helpers import relative_error

pytest.importorskip("triton")
kernels = importlib.import_module("garevla.kernels.frames.alignment")

SIZES = [  # texts, videos, captions, frames, dim
    (1, 1, 1, 1, 7),
    (5, 3, 5, 12, 24),
    (2, 9, 12, 5, 65),
    (33, 2, 1, 5, 130),
    (3, 31, 13, 1, 17),
    (33, 2, 16, 17, 5),
    (2, 2, 33, 64, 16),
    (1, 3, 64, 33, 15),
    (1, 2, 3, 130, 5),
]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
KERNELS = [
    "frame_alignment_kernel",
    "frame_alignment_maxima_kernel",
    "frame_alignment_captions_kernel",
    "frame_alignment_frames_kernel",
]
Inputs = list[Tensor]

eager = partial(frame_level_similarity, backend="eager")
in_triton = partial(frame_level_similarity, backend="triton")


def random_mask(batch: int, frames: int) -> Tensor:
    mask = torch.rand(batch, frames) < 0.6
    mask[torch.arange(batch), torch.randint(frames, (batch,))] = True
    return mask


def inputs_of(size: tuple[int, ...], scale: float = 7.0) -> Inputs:
    """Captions, frames and scale; representable in float32."""
    texts, videos, captions, frames, dim = size
    inputs = torch.randn(texts, captions, dim), torch.randn(videos, frames, dim)
    return [x.double().requires_grad_() for x in (*inputs, torch.tensor(scale))]


def masks_of(size: tuple[int, ...]) -> Inputs:
    texts, videos, captions, frames, _ = size
    return [random_mask(texts, captions), random_mask(videos, frames)]


def in_float32(inputs: Inputs) -> Inputs:
    return [x.detach().to(DEVICE, torch.float32).requires_grad_() for x in inputs]


def outcome(function: Any, inputs: Inputs, *options: Any) -> Inputs:
    """Similarity, and the gradients of a weighted sum of it."""
    options = [x.to(DEVICE) if isinstance(x, Tensor) else x for x in options]
    similarity = function(*inputs, *options)
    weights = torch.randn(similarity.shape, generator=torch.Generator().manual_seed(1))
    gradients = torch.autograd.grad(similarity, inputs, weights.to(similarity))
    return [x.cpu() for x in (similarity.detach(), *gradients)]


def check(size: tuple[int, ...], masks: Inputs, scale: float = 7.0) -> None:
    inputs = inputs_of(size, scale)
    exact = outcome(eager, [x.detach().to(DEVICE).requires_grad_() for x in inputs], *masks)
    plain = outcome(eager, in_float32(inputs), *masks)
    found = outcome(in_triton, in_float32(inputs), *masks)
    for got, reference, want in zip(found, plain, exact, strict=True):
        if want.norm() < 1e-12:  # of one caption and frame there is no weight to move
            assert got.norm() < 1e-6
        else:
            # The scale's gradient is one number, whose error may be small by chance.
            floor = 1e-6 if want.dim() == 0 else 3e-7
            assert relative_error(got, want) <= 3 * relative_error(reference, want) + floor


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_values_and_gradients(size: tuple[int, ...], masked: bool):
    check(size, masks_of(size) if masked else [None, None])


@pytest.mark.parametrize("scale", [-5.0, 0.0, 100.0])
def test_scales(scale: float):
    size = (5, 3, 6, 3, 24)
    check(size, masks_of(size), scale)


def test_scale_as_a_number():
    captions, frames, _ = in_float32(inputs_of((5, 3, 2, 4, 24)))
    found = in_triton(captions, frames, 7.0)
    assert relative_error(found, eager(captions, frames, 7.0)) < 1e-6


@pytest.mark.parametrize(
    ("precision", "bound"), [("tf32x3", 2e-6), ("tf32", 3e-3), ("bfloat16", 1e-2)]
)
def test_precisions(precision: str, bound: float):
    def found_in(captions: Tensor, frames: Tensor, scale: Tensor) -> Tensor:
        unit = (normalize(x, dim=-1) for x in (captions, frames))
        return kernels.frame_alignment(*unit, scale, precision=precision)

    inputs = inputs_of((5, 3, 4, 6, 24))
    exact = outcome(eager, [x.detach().to(DEVICE).requires_grad_() for x in inputs])
    found = outcome(found_in, in_float32(inputs))
    # Of the gradients only the rounding is bounded: another maximum may win.
    assert relative_error(found[0], exact[0]) < bound
    assert all(relative_error(a, b) < 0.2 for a, b in zip(found[1:], exact[1:], strict=True))
    if precision == "bfloat16":
        assert relative_error(found[0], exact[0]) > 1e-5


def test_ties_are_broken_as_in_eager():
    # Unit vectors along a few axes: every cosine is 0 or 1 exactly, and many are equal.
    captions = torch.eye(16)[torch.randint(3, (5, 12))]
    frames = torch.eye(16)[torch.randint(3, (4, 6))]
    inputs = [x.double().requires_grad_() for x in (captions, frames, torch.tensor(3.0))]
    masks = masks_of((5, 4, 12, 6, 16))
    exact = outcome(eager, [x.detach().to(DEVICE).requires_grad_() for x in inputs], *masks)
    found = outcome(in_triton, in_float32(inputs), *masks)
    assert all(relative_error(a, b) < 1e-6 for a, b in zip(found, exact, strict=True))


def test_padding_takes_no_part():
    size = (5, 3, 5, 6, 24)
    inputs, masks = in_float32(inputs_of(size)), masks_of(size)
    clean = outcome(in_triton, inputs, *masks)
    with torch.no_grad():
        for features, mask in zip(inputs, masks, strict=False):
            features[~mask.to(DEVICE)] = torch.nan
    found = outcome(in_triton, inputs, *masks)
    assert all(torch.equal(a, b) for a, b in zip(found, clean, strict=True))
    for gradient, mask in zip(found[1:], masks, strict=False):
        assert not gradient[~mask].any()


@pytest.mark.filterwarnings("ignore:All-NaN", "ignore:invalid value")  # of the interpreter
def test_nan_is_not_hidden():
    captions, frames, scale = (x.detach() for x in in_float32(inputs_of((3, 4, 5, 6, 24))))
    masks = [mask.to(DEVICE) for mask in masks_of((3, 4, 5, 6, 24))]
    captions[2, 0, 3] = frames[1, 2, 3] = torch.nan
    masks[0][2, 0] = masks[1][1, 2] = True
    for given in ([], masks):
        found = in_triton(captions, frames, scale, *given)
        bad = torch.zeros(3, 4, dtype=torch.bool, device=DEVICE)
        bad[2], bad[:, 1] = True, True
        assert torch.equal(found.isnan(), bad)


@pytest.mark.parametrize(("texts", "at_a_time"), [(5, 2), (33, 31)])
def test_chunks_change_nothing(texts: int, at_a_time: int, monkeypatch: pytest.MonkeyPatch):
    size = (texts, 3, 5, 4, 7)
    inputs, masks = in_float32(inputs_of(size)), masks_of(size)
    whole = outcome(in_triton, inputs, *masks)
    monkeypatch.setattr("garevla.kernels.configs.ALIGNMENT_MAXIMA_KEPT", at_a_time * 3 * 9)
    for a, b in zip(outcome(in_triton, inputs, *masks), whole, strict=True):
        assert relative_error(a, b) < 1e-6


def test_bits_repeat():
    inputs = in_float32(inputs_of((9, 9, 4, 4, 24)))
    once, again = (outcome(in_triton, inputs) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))


def test_non_contiguous_inputs():
    size = (5, 3, 2, 4, 24)
    inputs, masks = in_float32(inputs_of(size)), masks_of(size)
    plain = outcome(in_triton, inputs, *masks)

    def strided(captions: Tensor, frames: Tensor, scale: Tensor, *masks: Tensor) -> Tensor:
        doubled = [torch.stack([x, x], dim=-1)[..., 0] for x in (captions, frames, *masks)]
        return in_triton(*doubled[:2], scale, *doubled[2:])

    for a, b in zip(outcome(strided, inputs, *masks), plain, strict=True):
        assert relative_error(a, b) < 1e-6


def test_half_precision_features():
    captions, frames, scale = (x.detach() for x in in_float32(inputs_of((5, 3, 2, 4, 24))))
    found = in_triton(captions.bfloat16(), frames.bfloat16(), scale)
    assert found.dtype == torch.float32
    assert relative_error(found, eager(captions.bfloat16(), frames.bfloat16(), scale)) < 1e-6


def test_autocast_changes_nothing():
    size = (5, 3, 5, 6, 24)
    inputs, masks = in_float32(inputs_of(size)), masks_of(size)
    plain = outcome(in_triton, inputs, *masks)
    with torch.autocast(DEVICE, torch.bfloat16):
        found = outcome(in_triton, inputs, *masks)
    assert all(torch.equal(a, b) for a, b in zip(found, plain, strict=True))


def test_float64():
    size = (3, 2, 2, 4, 24)
    inputs = [x.to(DEVICE) for x in inputs_of(size)]
    captions, frames, scale = inputs
    for wrong in ((captions, frames), (captions.float(), frames), (captions, frames.float())):
        with pytest.raises(garevla.BackendUnavailableError, match="no float64"):
            in_triton(*wrong, scale)
        with (
            garevla.use_backend("triton"),
            pytest.raises(garevla.BackendUnavailableError, match="no float64"),
        ):
            frame_level_similarity(*wrong, scale)
    assert torch.equal(frame_level_similarity(*inputs), eager(*inputs))


def test_the_loss():
    batch, frames, dim = 5, 6, 24
    shapes = (batch, dim), (batch, frames, dim), (batch, frames, dim)
    text, video, captions = (torch.randn(x, device=DEVICE, requires_grad=True) for x in shapes)
    scale = torch.tensor(9.0, device=DEVICE, requires_grad=True)
    mask = random_mask(batch, frames).to(DEVICE)
    loss = garevla.DiscoVLALoss()

    def found_with(backend: str) -> list[Tensor]:
        with garevla.use_backend(backend):
            out = loss(text, video, scale, mask, captions)
            out.loss.backward()
        leaves = text, video, captions, scale
        gradients = [x.grad for x in leaves]
        for leaf in leaves:
            leaf.grad = None
        return [out.loss, out.frame, out.distillation, *gradients]

    with pytest.MonkeyPatch.context() as patch:
        patch.delattr("garevla.ops.eager.frame_alignment._BestMatches")  # what eager runs
        found = found_with("triton")
    for got, want in zip(found, found_with("eager"), strict=True):
        assert relative_error(got, want) < 2e-6


def test_launches_are_recorded():
    recorded = []
    inputs = in_float32(inputs_of((5, 3, 5, 12, 24)))
    with launching.recording(lambda *launch: recorded.append(launch)):
        similarity = kernels.frame_alignment(*inputs, precision="bfloat16")
        torch.autograd.grad(similarity.sum(), inputs)
    assert [kernel.__name__ for kernel, *_ in recorded] == KERNELS
    for kernel, arguments, options in recorded:
        assert set(arguments) == set(kernel.arg_names)
        assert set(options) >= {"num_warps", "num_stages"}
        operands = arguments.get("features", (arguments.get("captions"), arguments.get("frames")))
        assert {x.dtype for x in operands[:2] if x is not None} == {torch.bfloat16}


def test_memory():
    texts, videos, captions, frames, dim = 9, 9, 8, 8, 7
    inputs = in_float32(inputs_of((texts, videos, captions, frames, dim)))
    captions_, frames_, scale = (x.detach() for x in inputs)
    masks = [torch.ones(9, 8, dtype=torch.bool, device=DEVICE) for _ in range(2)]
    with LargestTensor() as largest:  # which sees nothing inside an operator
        found = kernels.alignment_forward(captions_, frames_, *masks, scale, "float32")
    assert largest.elements <= captions_.numel()
    with LargestTensor() as largest:
        kernels.alignment_backward(
            captions_, frames_, *masks, scale, "float32", *found[1:], found[0]
        )
    assert largest.elements == texts * captions * videos


def test_opcheck():
    size = (3, 2, 2, 4, 7)
    inputs, masks = in_float32(inputs_of(size)), [mask.to(DEVICE) for mask in masks_of(size)]
    arguments = [*inputs[:2], *masks, inputs[2], "float32"]
    operators = torch.ops.garevla_triton
    torch.library.opcheck(operators.frame_alignment.default, arguments)
    arguments = [x.detach() if isinstance(x, Tensor) else x for x in arguments]
    similarity, *saved = operators.frame_alignment(*arguments)
    arguments = (*arguments, *saved, similarity)
    torch.library.opcheck(operators.frame_alignment_backward.default, arguments)


@pytest.mark.parametrize("backend", ["triton", "eager"])
@pytest.mark.parametrize("masked", [False, True])
def test_compiled(backend: str, masked: bool):
    size = (5, 3, 2, 4, 24)
    inputs, masks = in_float32(inputs_of(size)), masks_of(size) if masked else [None, None]
    compiled = torch.compile(frame_level_similarity, fullgraph=True, backend="aot_eager")
    with garevla.use_backend(backend):
        found = outcome(compiled, inputs, *masks)
        for a, b in zip(found, outcome(frame_level_similarity, inputs, *masks), strict=True):
            assert relative_error(a, b) < 1e-6


def test_no_second_derivative():
    inputs = in_float32(inputs_of((3, 2, 2, 4, 24)))
    value = in_triton(*inputs).sum()
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(value, inputs, create_graph=True)


def test_wrong_arguments():
    captions, frames, scale = in_float32(inputs_of((3, 2, 2, 4, 24)))
    masks = [torch.ones(3, 2, device=DEVICE), torch.ones(2, 4, device=DEVICE)]
    with pytest.raises(ValueError, match="frame_features must have shape"):
        in_triton(captions, frames[..., :-1], scale)
    with pytest.raises(ValueError, match="no valid frame"):
        in_triton(captions, frames, scale, masks[0] * 0)
    similarity = kernels.frame_alignment
    with pytest.raises(ValueError, match="captions and frames must have shapes"):
        similarity(captions, frames[..., :-1], scale)
    with pytest.raises(ValueError, match="are empty"):
        similarity(captions[:0], frames, scale)
    with pytest.raises(TypeError, match=r"must be torch\.float32"):
        similarity(captions.double(), frames, scale)
    with pytest.raises(ValueError, match="precision must be one of"):
        similarity(captions, frames, scale, precision="float16")
    with pytest.raises(ValueError, match="logit_scale must be 0-d"):
        similarity(captions, frames, scale[None])
    with pytest.raises(ValueError, match="caption_mask must be bool of shape"):
        similarity(captions, frames, scale, masks[0], masks[1].bool())
    with pytest.raises(ValueError, match="frame_mask must be bool of shape"):
        similarity(captions, frames, scale, masks[0].bool(), masks[1][:1].bool())
