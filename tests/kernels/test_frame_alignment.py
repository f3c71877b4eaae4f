"""What the frame-level similarity's kernels alone have: presets, chunks, launches, no float64."""

from __future__ import annotations

import importlib

import pytest
import torch

import garevla
from garevla.discovla.similarity import frame_level_similarity
from tests.conformance.error_model import expected, outcome
from tests.conformance.operations import inputs_of, results
from tests.conformance.targets import TRITON
from tests.head.test_memory import LargestTensor
from tests.helpers import relative_error

if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed", allow_module_level=True)
kernels = importlib.import_module("garevla.kernels.frames.alignment")
launching = importlib.import_module("garevla.kernels.launching")

KERNELS = [
    "frame_alignment_kernel",
    "frame_alignment_maxima_kernel",
    "frame_alignment_captions_kernel",
    "frame_alignment_frames_kernel",
]
PLAIN, MASKED = "frame_alignment", "frame_alignment with masks"


@pytest.mark.parametrize(
    ("precision", "bound"), [("tf32x3", 2e-6), ("tf32", 3e-3), ("bfloat16", 1e-2)]
)
def test_precisions(precision: str, bound: float):
    size = (5, 3, 4, 6, 24)
    (exact,) = expected(PLAIN, size)
    with garevla.use_precision(precision):
        inputs = inputs_of(PLAIN, size, torch.float32, TRITON.device)
        (found,) = outcome(PLAIN, "triton", inputs)
    assert relative_error(found["value"], exact["value"]) < bound
    # Of the gradients only the rounding is bounded: another maximum may win.
    assert all(relative_error(found[name], want) < 0.2 for name, want in exact.items())
    if precision == "bfloat16":
        assert relative_error(found["value"], exact["value"]) > 1e-5


@pytest.mark.parametrize(("texts", "at_a_time"), [(5, 2), (33, 31)])
def test_chunks_change_nothing(texts: int, at_a_time: int, monkeypatch: pytest.MonkeyPatch):
    inputs = inputs_of(MASKED, (texts, 3, 5, 4, 7), torch.float32, TRITON.device)
    whole = results(MASKED, "triton", inputs)
    monkeypatch.setattr("garevla.kernels.configs.ALIGNMENT_MAXIMA_KEPT", at_a_time * 3 * 9)
    for got, want in zip(results(MASKED, "triton", inputs), whole, strict=True):
        assert relative_error(got, want) < 1e-6


def test_float64():
    inputs = inputs_of(PLAIN, (3, 2, 2, 4, 24), device=TRITON.device)
    captions, frames, scale = (inputs[name] for name in ("captions", "frames", "logit_scale"))
    for wrong in ((captions, frames), (captions.float(), frames), (captions, frames.float())):
        with pytest.raises(garevla.BackendUnavailableError, match="no float64"):
            frame_level_similarity(*wrong, scale, backend="triton")
        with (
            garevla.use_backend("triton"),
            pytest.raises(garevla.BackendUnavailableError, match="no float64"),
        ):
            frame_level_similarity(*wrong, scale)
    given = captions, frames, scale
    want = frame_level_similarity(*given, backend="eager")
    assert torch.equal(frame_level_similarity(*given), want)


def test_launches_are_recorded():
    recorded = []
    inputs = inputs_of(PLAIN, (5, 3, 5, 12, 24), torch.float32, TRITON.device)
    with (
        garevla.use_precision("bfloat16"),
        launching.recording(lambda *launch: recorded.append(launch)),
    ):
        results(PLAIN, "triton", inputs)
    assert [kernel.__name__ for kernel, *_ in recorded] == KERNELS
    for kernel, arguments, options in recorded:
        assert set(arguments) == set(kernel.arg_names)
        assert set(options) >= {"num_warps", "num_stages"}
        operands = arguments.get("features", (arguments.get("captions"), arguments.get("frames")))
        assert {x.dtype for x in operands[:2] if x is not None} == {torch.bfloat16}


def test_memory():
    texts, videos, captions, frames, dim = 9, 9, 8, 8, 7
    inputs = inputs_of(PLAIN, (texts, videos, captions, frames, dim), torch.float32, TRITON.device)
    features = [inputs[name].detach() for name in ("captions", "frames")]
    scale = inputs["logit_scale"].detach()
    masks = [torch.ones(9, 8, dtype=torch.bool, device=TRITON.device) for _ in range(2)]
    with LargestTensor() as largest:  # which sees nothing inside an operator
        found = kernels.alignment_forward(*features, *masks, scale, "float32")
    assert largest.elements <= features[0].numel()
    with LargestTensor() as largest:
        kernels.alignment_backward(*features, *masks, scale, "float32", *found[1:], found[0])
    assert largest.elements == texts * captions * videos


def test_unknown_precision():
    inputs = inputs_of(PLAIN, (3, 2, 2, 4, 24), torch.float32, TRITON.device)
    given = (inputs[name] for name in ("captions", "frames", "logit_scale"))
    with pytest.raises(ValueError, match="precision must be one of"):
        kernels.frame_alignment(*given, precision="float16")
