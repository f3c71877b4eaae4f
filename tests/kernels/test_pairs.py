"""What the pair kernels alone have: tiles, programs, chunks, precision presets, tuning."""

from __future__ import annotations

import importlib
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import garevla
from garevla.increments.low_rank.factors import PAIR_FACTORS, TextFactors, VideoFactors
from garevla.kernels import backend as kernels
from tests.conformance.agreement import check_agreement, check_exact
from tests.conformance.error_model import expected, outcome
from tests.conformance.operations import OPERATIONS, POOL_TEMPERATURE, inputs_of, outputs
from tests.conformance.targets import TRITON, Target, on_sizes
from tests.conformance.test_alike import check_gradient
from tests.head.test_memory import LargestTensor
from tests.helpers import relative_error

if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed", allow_module_level=True)
LaunchConfig = importlib.import_module("garevla.kernels.configs").LaunchConfig
arguments = importlib.import_module("garevla.kernels.pairs.arguments")
backward = importlib.import_module("garevla.kernels.pairs.backward")
importlib.import_module("garevla.kernels.pairs.operators")  # registers them
statistics = importlib.import_module("garevla.kernels.pairs.statistics")

SAMPLED = "pair_statistics with samples"

# Relative errors allowed to the presets that round their operands: a few units of their last place.
ROUNDED = {"tf32x3": 2e-6, "tf32": 5e-3, "bfloat16": 3e-2}


@pytest.mark.parametrize("precision", ROUNDED)
def test_precision_presets(precision: str):
    size = (17, 3, 5, 64, 1)
    exact = expected(SAMPLED, size, together=True)
    with garevla.use_precision(precision):
        inputs = inputs_of(SAMPLED, size, torch.float32, TRITON.device)
        found = outcome(SAMPLED, "triton", inputs, together=True)
    errors = [relative_error(a["value"], b["value"]) for a, b in zip(found, exact, strict=True)]
    assert max(errors) < 3 * ROUNDED[precision]
    if precision == "bfloat16":
        assert max(errors) > 1e-5, "the preset has no effect"
    for name, want in exact[0].items():
        if want is not None and name != "value" and want.norm() > 0:
            assert relative_error(found[0][name], want) < 10 * ROUNDED[precision], name


def test_pytorchs_own_setting_is_followed():
    inputs = inputs_of("pair_similarity", (17, 3, 5, 64, 1), torch.float32, TRITON.device)

    def similarity() -> Tensor:
        return outputs("pair_similarity", "triton", inputs)[0]

    with garevla.use_precision("bfloat16"):
        want = similarity()
    torch.set_float32_matmul_precision("medium")
    try:
        found = similarity()
    finally:
        torch.set_float32_matmul_precision("highest")
    assert torch.equal(found, want)
    assert not torch.equal(similarity(), want)


def pair_arguments(text: TextFactors, video: VideoFactors) -> Any:
    return arguments.PairArguments(
        text.features,
        video.operator_arguments(),
        POOL_TEMPERATURE,
        list(video.layer_norm_eps),
        "float32",
    )


def set_tile(monkeypatch: pytest.MonkeyPatch, videos: int) -> None:
    config = LaunchConfig(rows=16, columns=videos, reduction=16, num_warps=4, num_stages=1)
    monkeypatch.setattr("garevla.kernels.pairs.arguments.pair_config", lambda *_: config)


@pytest.mark.parametrize(
    ("operation", "videos", "programs"),
    [
        ("pair_terms", 4, 2),
        (SAMPLED, 2, 1024),
        *(
            pytest.param(operation, *sizes, marks=pytest.mark.slow)
            for operation in ("pair_terms", SAMPLED)
            for sizes in ((1, 1), (2, 1))
        ),
        pytest.param("pair_terms", 2, 1024, marks=pytest.mark.slow),
        pytest.param(SAMPLED, 4, 2, marks=pytest.mark.slow),
    ],
)
def test_groups_of_videos(
    operation: str, videos: int, programs: int, monkeypatch: pytest.MonkeyPatch
):
    """Tiles of several videos, the last of them not full; programs of one tile and of several."""
    set_tile(monkeypatch, videos)
    monkeypatch.setattr("garevla.kernels.configs.PAIR_PROGRAMS", programs)
    check_exact(TRITON, operation, (35, 7, 3, 24, 2))


@pytest.mark.parametrize("videos", [3, 5, pytest.param(7, marks=pytest.mark.slow)])
def test_tiles_share_their_texts(videos: int, monkeypatch: pytest.MonkeyPatch):
    """Groups of two tiles of videos: the second is not full, or begins beyond the last video."""

    def config(kernel: str, *_: Any) -> LaunchConfig:
        return LaunchConfig(16, 2, 16, 4, 1, tiles=2 if kernel == "scores" else 1)

    monkeypatch.setattr("garevla.kernels.pairs.arguments.pair_config", config)
    check_exact(TRITON, "pair_similarity", (35, videos, 3, 24, 2))


@on_sizes([Target("triton", "cuda")], [label for label in OPERATIONS if label.startswith("pair")])
def test_one_program_for_all_tiles(
    target: Target, operation: str, size: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
):
    target.require()
    monkeypatch.setattr("garevla.kernels.configs.PAIR_PROGRAMS", 1)
    check_agreement(target, operation, size)


def test_one_frame_leaves_no_variance():
    """All weights are 1 exactly: the bottleneck's slope at variances of rounding would be huge."""
    inputs = inputs_of("pair_statistics", (35, 3, 1, 24, 1), torch.float32, TRITON.device)
    covariance = outputs("pair_statistics", "triton", inputs)[6]
    assert covariance.shape == (3, 3, 3)
    assert not covariance.any()


def test_several_chunks_and_segments(monkeypatch: pytest.MonkeyPatch):
    """Small workspaces: chunks of videos and texts, segments of texts."""
    monkeypatch.setattr("garevla.kernels.configs.FORWARD_PAIRS", 150)
    monkeypatch.setattr("garevla.kernels.configs.BACKWARD_PRODUCTS", 2000)
    monkeypatch.setattr("garevla.kernels.configs.BACKWARD_TEXTS", 64)
    check_exact(TRITON, SAMPLED, (70, 3, 3, 24, 1))


def test_nan_stays_with_its_video_in_a_tile(monkeypatch: pytest.MonkeyPatch):
    TRITON.require_that_nan_is_dropped()
    set_tile(monkeypatch, videos=2)
    inputs = inputs_of("pair_terms", (17, 5, 3, 16, 1), torch.float32, TRITON.device)
    plain = outputs("pair_terms", "triton", inputs)
    broken = {name: inputs[name].detach().clone() for name in PAIR_FACTORS if name != "frame_mask"}
    for factor in broken.values():
        factor[2] = torch.nan
    others = [0, 1, 3, 4]
    for got, before in zip(outputs("pair_terms", "triton", inputs | broken), plain, strict=True):
        assert got[2].isnan().all()
        assert relative_error(got[others], before[others]) < 1e-6


def test_too_many_frames_are_refused():
    inputs = inputs_of("pair_similarity", (2, 1, 64, 8, 2), device=TRITON.device)
    assert "at most" in TRITON.refusal("pair_similarity", inputs)
    with pytest.raises(ValueError, match="heads · frames"):
        outputs("pair_similarity", "triton", inputs)


def test_statistics_hold_no_pairs(monkeypatch: pytest.MonkeyPatch):
    """Nothing of A·B elements is made inside the operators but the workspace."""
    monkeypatch.setattr("garevla.kernels.configs.FORWARD_PAIRS", 80)
    monkeypatch.setattr("garevla.kernels.configs.BACKWARD_PRODUCTS", 200)
    monkeypatch.setattr("garevla.kernels.configs.BACKWARD_TEXTS", 16)
    monkeypatch.setattr("garevla.kernels.configs.PAIR_PROGRAMS", 1)
    texts, videos = 40, 8
    inputs = inputs_of("pair_statistics", (texts, videos, 1, 4, 1), torch.float32, TRITON.device)
    text, video, *_ = OPERATIONS["pair_statistics"].arguments(inputs)
    scale, targets = inputs["logit_scale"], inputs["targets"]
    with torch.no_grad(), LargestTensor() as largest:
        pairs = pair_arguments(text, video)
        row, column, target, norm_mean, variance, mean, covariance, *_ = statistics.pair_statistics(
            pairs, scale, targets, None
        )
        gradients = [row, column, target, variance, mean, covariance]
        backward.pair_statistics_backward(
            pairs, scale, targets, None, row, column, norm_mean, mean, gradients, None
        )
    assert largest.elements < texts * videos


def test_tiles_of_one_program_keep_the_divergences_gradient(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("garevla.kernels.configs.PAIR_PROGRAMS", 1)
    check_gradient(TRITON, spread=1e-2, bound=2e-4, batch=20)


def test_a_single_videos_variance_has_no_gradient():
    """None at all: not what is left of a norm less its mean, which rounding may have moved."""
    inputs = inputs_of("pair_statistics", (17, 1, 3, 8, 1), torch.float32, TRITON.device)
    text, video, *_ = OPERATIONS["pair_statistics"].arguments(inputs)
    scale, targets = inputs["logit_scale"], inputs["targets"]
    with torch.no_grad():
        pairs = pair_arguments(text, video)
        row, column, target, norm_mean, variance, mean, covariance, *_ = statistics.pair_statistics(
            pairs, scale, targets, None
        )
        assert not variance.any()
        gradients = [torch.zeros_like(x) for x in (row, column, target, variance, mean, covariance)]
        gradients[3].fill_(1.0)
        moved = norm_mean * (1 + 1e-5)
        found = backward.pair_statistics_backward(
            pairs, scale, targets, None, row, column, moved, mean, gradients, None
        )
    assert not any(gradient.any() for gradient in found)


def test_autotuning_takes_the_fastest_that_runs(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    tuning = importlib.import_module("garevla.kernels.pairs.tuning")
    default, ran = LaunchConfig(64, 1, 32, 4, 2), []
    pairs = SimpleNamespace(
        config=lambda kernel: default,
        text=SimpleNamespace(device=torch.device("cuda"), dtype=torch.float32),
        precision="float32",
        **dict.fromkeys(("num_texts", "num_videos", "dim", "heads", "frames"), 8),
    )

    def seconds(run: Any, **_: Any) -> float:
        run()
        if ran[-1].rows > default.rows:
            raise RuntimeError("PassManager::run failed")
        return 1.0 if ran[-1].num_warps == 8 else 2.0

    monkeypatch.setattr(tuning, "_tuned", {})
    monkeypatch.setattr(tuning, "architecture", lambda device: 90)
    monkeypatch.setattr(tuning.triton.testing, "do_bench", seconds)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    choose = partial(tuning.tuned, pairs, "scores", ran.append, key="a test")
    assert choose() == default
    monkeypatch.setenv("GAREVLA_AUTOTUNE", "1")
    caplog.set_level("INFO", logger=tuning.__name__)
    assert choose() == default._replace(num_warps=8)
    tried = len(ran)
    assert tried > 5
    assert tuning.candidates(LaunchConfig(128, 2, 32, 8, 3, tiles=2))[1][:4] == (64, 2, 32, 4)
    assert caplog.messages[0].startswith("a test in float32: 1.000 ms with LaunchConfig(rows=64")
    assert choose().num_warps == 8
    assert len(ran) == tried


def test_unavailable_says_why(monkeypatch: pytest.MonkeyPatch):
    assert "no kernels for meta" in kernels.unavailable(torch.device("meta"))
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert "TRITON_INTERPRET" in kernels.unavailable(torch.device("cpu"))
