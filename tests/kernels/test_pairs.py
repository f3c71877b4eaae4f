"""The pair operators in Triton, each against its eager namesake; golden vectors; what they keep."""

from __future__ import annotations

import importlib.util
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import garevla
from garevla.increments.low_rank.factors import VideoFactors, text_factors
from garevla.kernels import backend as kernels
from garevla.reference import gare as reference
from tests.helpers import (
    GOLDEN,
    Golden,
    pair_factors,
    random_batch,
    random_psi,
    relative_error,
)
from tests.helpers import operation as implementation
from tests.ops.test_operators import check, inputs_of, leaves, plain_errors

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed", allow_module_level=True)

importlib.import_module("garevla.kernels.pairs.operators")  # registers them
LaunchConfig = importlib.import_module("garevla.kernels.configs").LaunchConfig

OPERATIONS = ["pair_similarity", "pair_terms", "pair_statistics", "pair_statistics with samples"]
SIZES = [  # texts, videos, frames, dim, heads
    (1, 1, 1, 24, 1),
    (17, 3, 5, 130, 2),
    (37, 2, 12, 65, 1),
    (33, 2, 64, 24, 1),
    (5, 2, 5, 16, 8),
]

Inputs = dict[str, Any]
# The mask, eps, and the basis by itself: its vectors are among the rows.
NO_NUMBERS_OF_PAIRS = ("frame_mask", "layer_norm_eps", "basis")


def on_device(inputs: Inputs) -> Inputs:
    return {
        name: value.detach().to(DEVICE).requires_grad_(value.requires_grad)
        if isinstance(value, Tensor)
        else value
        for name, value in inputs.items()
    }


def outputs(operation: str, backend: str, inputs: Inputs) -> tuple[Tensor, ...]:
    name, *with_samples = operation.split()
    function = implementation(name, backend)
    video = VideoFactors(**{field: inputs[field] for field in VideoFactors._fields})
    arguments = [text_factors(inputs["text"]), video, 3.0]
    if name == "pair_similarity":
        return (function(*arguments),)
    if name == "pair_terms":
        return tuple(function(*arguments))
    samples = inputs["samples"] if with_samples else None
    found = function(*arguments, inputs["logit_scale"], inputs["targets"], samples)
    return tuple(tensor for tensor in found if tensor is not None)


def outcome(operation: str, backend: str, inputs: Inputs) -> dict[str, dict[str, Tensor]]:
    """Every output, and the gradients of a weighted sum of all of them."""
    torch.manual_seed(1)
    values = outputs(operation, backend, inputs)
    total = 0
    for value in values:
        weights = torch.randn(value.shape, dtype=torch.float64)
        total = total + (weights.to(value) * value).sum()
    named = leaves(inputs)
    gradients = torch.autograd.grad(total, list(named.values()), allow_unused=True)
    gradients = dict(zip(named, gradients, strict=True))
    return [
        {"value": value.detach().cpu()}
        | ({k: g if g is None else g.cpu() for k, g in gradients.items()} if n == 0 else {})
        for n, value in enumerate(values)
    ]


CASES = [(operation, SIZES[1]) for operation in OPERATIONS[::2]]
CASES += [(operation, size) for operation in OPERATIONS[1::2] for size in SIZES]


@pytest.mark.parametrize(("operation", "size"), CASES, ids=str)
def test_agrees_with_eager(operation: str, size: tuple[int, ...]):
    double, single = (inputs_of(size, dtype) for dtype in (torch.float64, torch.float32))
    exact = outcome(operation, "eager", double)
    for found, want in zip(outcome(operation, "triton", on_device(double)), exact, strict=True):
        check(found, want)
    actual = outcome(operation, "triton", on_device(single))
    plain = plain_errors(operation, size, outcome)
    for found, want, of_plain in zip(actual, exact, plain, strict=True):
        assert found["value"].dtype == torch.float32
        check(found, want, of_plain, max(size))


@pytest.mark.parametrize("factor", [0.0, -1.0, 2.0])
def test_a_wrong_gradient_is_noticed(factor: float):
    size = (9, 4, 3, 16, 2)
    single = inputs_of(size, torch.float32)
    exact = outcome("pair_statistics", "eager", inputs_of(size))[0]
    plain = plain_errors("pair_statistics", size, outcome)[0]
    found = outcome("pair_statistics", "triton", on_device(single))[0]
    check(found, exact, plain, max(size))
    for name, gradient in exact.items():
        if gradient is not None and gradient.norm() > 0:
            with pytest.raises(AssertionError):
                check(found | {name: factor * found[name]}, exact, plain, max(size))


# Relative errors allowed to the presets that round their operands: a few units of their last place.
ROUNDED = {"tf32x3": 2e-6, "tf32": 5e-3, "bfloat16": 3e-2}


@pytest.mark.parametrize("precision", ROUNDED)
def test_precision_presets(precision: str):
    size = (17, 3, 5, 64, 1)
    exact = outcome("pair_statistics with samples", "eager", inputs_of(size))
    with garevla.use_precision(precision):
        single = on_device(inputs_of(size, torch.float32))
        found = outcome("pair_statistics with samples", "triton", single)
    errors = [relative_error(a["value"], b["value"]) for a, b in zip(found, exact, strict=True)]
    assert max(errors) < 3 * ROUNDED[precision]
    if precision == "bfloat16":
        assert max(errors) > 1e-5, "the preset has no effect"
    for name, want in exact[0].items():
        if want is not None and name != "value" and want.norm() > 0:
            assert relative_error(found[0][name], want) < 10 * ROUNDED[precision], name


def test_pytorchs_own_setting_is_followed():
    def similarity() -> Tensor:
        inputs = on_device(inputs_of((17, 3, 5, 64, 1), torch.float32))
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


def set_tile(monkeypatch: pytest.MonkeyPatch, videos: int) -> None:
    config = LaunchConfig(rows=16, columns=videos, reduction=16, num_warps=4, num_stages=1)
    monkeypatch.setattr("garevla.kernels.pairs.arguments.pair_config", lambda *_: config)


@pytest.mark.parametrize(("videos", "programs"), [(1, 1), (2, 1), (2, 1024), (4, 2)])
@pytest.mark.parametrize("operation", ["pair_terms", "pair_statistics with samples"])
def test_groups_of_videos(
    operation: str, videos: int, programs: int, monkeypatch: pytest.MonkeyPatch
):
    """Tiles of several videos, the last of them not full; programs of one tile and of several."""
    set_tile(monkeypatch, videos)
    monkeypatch.setattr("garevla.kernels.configs.PAIR_PROGRAMS", programs)
    size = (35, 7, 3, 24, 2)
    exact = outcome(operation, "eager", inputs_of(size))
    for found, want in zip(
        outcome(operation, "triton", on_device(inputs_of(size))), exact, strict=True
    ):
        check(found, want)


@pytest.mark.parametrize(
    "name", [name for name in VideoFactors._fields if name not in NO_NUMBERS_OF_PAIRS]
)
def test_nan_stays_with_its_video(name: str, monkeypatch: pytest.MonkeyPatch):
    set_tile(monkeypatch, videos=2)
    inputs = on_device(inputs_of((17, 5, 3, 16, 1), torch.float32))
    plain = outputs("pair_terms", "triton", inputs)
    broken = inputs[name].detach().clone()
    broken[2].view(-1)[0] = torch.nan
    found = outputs("pair_terms", "triton", inputs | {name: broken})
    want = outputs("pair_terms", "eager", inputs | {name: broken})
    assert want[0][2].isnan().all()
    others = [0, 1, 3, 4]
    for got, exact, before in zip(found, want, plain, strict=True):
        assert got[2][exact[2].isnan()].isnan().all()
        assert relative_error(got[others], before[others]) < 1e-6


@pytest.mark.parametrize("lambda_direction", [0.0, 0.01])
def test_nan_in_padding_takes_no_part(lambda_direction: float):
    psi = random_psi(16).to(DEVICE)
    text, frames, _ = random_batch(5, 5, 4, 16, torch.float32)
    text, frames = text.detach().to(DEVICE), frames.detach().to(DEVICE)
    mask = torch.ones(5, 7, dtype=torch.bool, device=DEVICE)
    mask[:, 4:] = False
    padded = torch.full((5, 7, 16), torch.nan, device=DEVICE)
    padded[:, :4] = frames
    loss = garevla.GareLoss(psi, backend="triton", lambda_direction=lambda_direction)
    results = []
    for features, valid in ((frames, None), (padded, mask)):
        features = features.clone().requires_grad_()
        value = loss(text, features, 20.0, valid).loss
        results.append((value, torch.autograd.grad(value, features)[0][:, :4]))
    for found, want in zip(*results, strict=True):
        assert relative_error(found, want) < 1e-5


@pytest.mark.parametrize("operation", ["pair_similarity", "pair_statistics with samples"])
def test_padding_takes_no_part(operation: str):
    """Frames appended behind a mask change nothing, whatever their factors hold."""
    size = (17, 3, 5, 24, 1)
    short = on_device(inputs_of(size, torch.float32))
    frames, more = 5, 9
    keep = torch.arange(frames)
    longer = dict(short)
    with torch.no_grad():
        rows = torch.full((3, 3 * more + 2, 24), 1e30, device=DEVICE)
        rows[:, keep] = short["rows"][:, :frames]
        rows[:, more + keep] = short["rows"][:, frames : 2 * frames]
        basis = [*range(frames), more, more + 1]
        rows[:, [2 * more + k for k in basis]] = short["rows"][:, 2 * frames :]
        longer["rows"] = rows
        longer["frame_mask"] = pad(short["frame_mask"], more, False)
        hidden = [*range(frames), more]
        for name in ("key_offset", "key_bias"):
            longer[name] = pad(short[name], more, 1e30)
        for name, index, length in (
            ("value_gram", range(frames), more),
            ("hidden_gram", hidden, more + 1),
            ("basis_gram", basis, more + 2),
            ("frame_gram", range(frames), more),
        ):
            wide = torch.full((3, length, length), 1e30, device=DEVICE)
            at = torch.tensor([*index], device=DEVICE)
            wide[:, at[:, None], at] = short[name]
            longer[name] = wide
        wide = torch.full((3, more + 2, more), 1e30, device=DEVICE)
        wide[:, torch.tensor(basis)[:, None], keep] = short["basis_frame"]
        longer["basis_frame"] = wide
    kept = [*range(frames), more, more + 1]
    found, want = outputs(operation, "triton", longer), outputs(operation, "triton", short)
    for got, plain in zip(found, want, strict=True):
        if got.shape != plain.shape:
            got = got[..., kept]
            got = got[..., kept, :] if got.dim() == 3 and got.shape[-2] == more + 2 else got
        # The sums' order may change, nothing else.
        assert relative_error(got, plain) < 1e-6


def pad(tensor: Tensor, length: int, value: Any) -> Tensor:
    return torch.nn.functional.pad(tensor, (0, length - tensor.shape[-1]), value=value)


GOLDEN_FILES = sorted(GOLDEN.glob("gare_*.npz"))


@pytest.mark.parametrize("path", GOLDEN_FILES, ids=lambda path: path.stem)
def test_golden(path: Path):
    """The published similarity, and its loss's gradients by way of the statistics."""
    golden = Golden(path)
    psi, mask = golden.psi().to(DEVICE), golden["mask"].to(DEVICE)
    text, frames = (golden[name].to(DEVICE).requires_grad_() for name in ("text", "frames"))
    temperature = golden.loss_arguments()["pool_temperature"]
    factors = pair_factors(text, frames, psi, mask)
    similarity, _, norm = implementation("pair_terms", "triton")(*factors, temperature)
    assert relative_error(similarity.T.cpu(), golden["similarity"]) < 1e-12
    assert relative_error(norm.T.cpu(), golden["delta"].norm(dim=2)) < 1e-12
    if golden.meta["A"] != golden.meta["B"]:
        return
    scale = torch.tensor(golden.meta["scale"], dtype=torch.float64, device=DEVICE)
    targets = torch.arange(len(text), device=DEVICE)
    found = implementation("pair_statistics", "triton")(*factors, temperature, scale, targets)
    rows = found.row_logsumexp - scale * found.target_similarity
    columns = found.column_logsumexp - scale * found.target_similarity
    assert relative_error((rows.mean() + columns.mean()).cpu() / 2, golden["nce"]) < 1e-11


@pytest.mark.parametrize("operation", OPERATIONS[1::2])
def test_bits_repeat(operation: str):
    inputs = on_device(inputs_of((37, 2, 5, 24, 2), torch.float32))
    first, second = (outcome(operation, "triton", inputs) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        for key, value in one.items():
            assert value is None or torch.equal(value, other[key])


def test_several_chunks_and_segments(monkeypatch: pytest.MonkeyPatch):
    """Small workspaces: chunks of videos and texts, segments of texts."""
    size = (70, 3, 3, 24, 1)
    inputs = on_device(inputs_of(size))
    want = outcome("pair_statistics with samples", "eager", inputs_of(size))
    monkeypatch.setattr("garevla.kernels.configs.FORWARD_PAIRS", 150)
    monkeypatch.setattr("garevla.kernels.configs.BACKWARD_PRODUCTS", 2000)
    monkeypatch.setattr("garevla.kernels.configs.BACKWARD_TEXTS", 64)
    for got, exact in zip(
        outcome("pair_statistics with samples", "triton", inputs), want, strict=True
    ):
        check(got, exact)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_opcheck(operation: str):
    inputs = on_device(inputs_of((3, 2, 2, 16, 1), torch.float32))
    video = VideoFactors(**{field: inputs[field] for field in VideoFactors._fields})
    arguments = (
        inputs["text"],
        video.operator_arguments(),
        3.0,
        list(video.layer_norm_eps),
        "float32",
    )
    name, *with_samples = operation.split()
    if name == "pair_statistics":
        samples = inputs["samples"] if with_samples else None
        arguments = (*arguments, inputs["logit_scale"], inputs["targets"], samples)
    torch.library.opcheck(getattr(torch.ops.garevla_triton, name).default, arguments)


def test_compiles_in_one_graph():
    inputs = on_device(inputs_of((5, 4, 3, 16, 2), torch.float32))

    def function(inputs: Inputs) -> Tensor:
        found = outputs("pair_statistics with samples", "triton", inputs)
        similarity = outputs("pair_similarity", "triton", inputs)
        return sum(x.square().sum() for x in (*found, *similarity))

    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    named = [inputs[k] for k in ("text", "rows", "basis_gram", "logit_scale")]
    plain = torch.autograd.grad(function(inputs), named)
    for got, want in zip(torch.autograd.grad(compiled(inputs), named), plain, strict=True):
        assert relative_error(got, want) < 1e-6


def test_autocast_changes_nothing():
    inputs = on_device(inputs_of((5, 4, 3, 16, 2), torch.float32))
    want = outcome("pair_statistics", "triton", inputs)
    with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
        got = outcome("pair_statistics", "triton", inputs)
    for a, b in zip(got, want, strict=True):
        assert all(x is None or torch.equal(x, b[key]) for key, x in a.items())


@pytest.mark.parametrize("operation", OPERATIONS)
def test_no_second_derivatives(operation: str):
    inputs = on_device(inputs_of((3, 2, 2, 16, 1), torch.float32))
    total = sum(x.square().sum() for x in outputs(operation, "triton", inputs))
    with pytest.raises(RuntimeError, match="no second derivatives"):
        torch.autograd.grad(total, inputs["text"], create_graph=True)


@pytest.mark.parametrize("gap", [1.0, 1e-1, 1e-2])
@pytest.mark.parametrize("alike", ["every pair", "the matching pair"])
def test_small_gaps_do_not_cancel(gap: float, alike: str):
    dim = 64
    psi = random_psi(dim)
    base = torch.randn(1 if alike == "every pair" else 8, 1, dim)
    frames = base + 0.1 * gap * torch.randn(8, 4, dim)
    text = frames.mean(1) + gap * torch.randn(8, dim)
    exact = reference.pairs(text.double(), frames.double(), psi.double())
    psi.float()
    same_dtype = reference.pairs(text, frames, psi)
    with torch.no_grad():
        factors = pair_factors(text.to(DEVICE), frames.to(DEVICE), psi.to(DEVICE), None)
        similarity, _, norm = (
            x.cpu() for x in implementation("pair_terms", "triton")(*factors, 3.0)
        )
    for got, plain, want in (
        (similarity.T, same_dtype.similarity, exact.similarity),
        (norm.T, same_dtype.increments.norm(dim=-1), exact.increments.norm(dim=-1)),
    ):
        assert relative_error(got, want) < 10 * relative_error(plain, want) + 1e-7


FACTORS = [name for name in VideoFactors._fields if name not in ("basis", "layer_norm_eps")]


@pytest.mark.parametrize("name", FACTORS)
def test_factors_that_do_not_fit_are_named(name: str):
    inputs = on_device(inputs_of((3, 4, 2, 8, 2)))
    named = "rows" if name == "key_bias" else name
    whole = inputs[name]
    for wrong, error, match in (
        (whole[:, :-1], ValueError, f"{named} must have shape"),
        (whole.float(), TypeError, f"{name} must be"),
    ):
        with pytest.raises(error, match=match):
            outputs("pair_terms", "triton", inputs | {name: wrong})


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"targets": torch.tensor([0, 1])}, "targets must have shape"),
        ({"targets": torch.tensor([0, 1, 2], dtype=torch.int32)}, "targets must be"),
        ({"samples": torch.tensor([0, 1, 1])}, "samples must have shape"),
        ({"logit_scale": torch.ones(2)}, "logit_scale must be one number"),
        ({"text": torch.ones(3, 8, dtype=torch.float16)}, "text must be"),
    ],
    ids=str,
)
def test_statistics_of_wrong_arguments(changed: Inputs, message: str):
    inputs = on_device(inputs_of((3, 4, 2, 8, 2)) | changed)
    with pytest.raises((ValueError, TypeError), match=message):
        outputs("pair_statistics with samples", "triton", inputs)


def test_too_many_frames_are_refused():
    with pytest.raises(ValueError, match="heads · frames"):
        outputs("pair_similarity", "triton", on_device(inputs_of((2, 1, 64, 8, 2))))


class _Largest(TorchDispatchMode):
    """Elements of the largest tensor that any operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(found):
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.untyped_storage().nbytes() // 4)
        return found


def test_statistics_hold_no_pairs(monkeypatch: pytest.MonkeyPatch):
    """Nothing of A·B elements is saved; nothing beyond the workspace exists on the way."""
    monkeypatch.setattr("garevla.kernels.configs.FORWARD_PAIRS", 80)
    monkeypatch.setattr("garevla.kernels.configs.BACKWARD_PRODUCTS", 200)
    monkeypatch.setattr("garevla.kernels.configs.BACKWARD_TEXTS", 16)
    monkeypatch.setattr("garevla.kernels.configs.PAIR_PROGRAMS", 1)
    texts, videos, dim = 40, 8, 4
    text, frames, mask = random_batch(texts, videos, 1, dim, torch.float32)
    with torch.no_grad():
        factors = pair_factors(text.to(DEVICE), frames.to(DEVICE), random_psi(dim).to(DEVICE), mask)
    given = factors[0].features.detach().requires_grad_()
    saved: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x), _Largest() as largest:
        found = implementation("pair_statistics", "triton")(
            text_factors(given),
            factors[1],
            3.0,
            torch.tensor(5.0, device=DEVICE),
            torch.zeros(texts, dtype=torch.int64, device=DEVICE),
        )
        torch.autograd.grad(found.row_logsumexp.sum(), given)
    assert max(saved) < texts * videos
    assert largest.elements < texts * videos


def test_autotuning_takes_the_fastest_that_runs(monkeypatch: pytest.MonkeyPatch):
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
    assert choose() == default._replace(num_warps=8)
    tried = len(ran)
    assert tried > 5
    assert choose().num_warps == 8
    assert len(ran) == tried


def test_unavailable_says_why(monkeypatch: pytest.MonkeyPatch):
    assert "no kernels for meta" in kernels.unavailable(torch.device("meta"))
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert "TRITON_INTERPRET" in kernels.unavailable(torch.device("cpu"))
