"""What the hidden layers' kernels alone have: tiles, chunks, masks, presets, launches."""

from __future__ import annotations

import importlib
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import garevla
from garevla.ops import backends
from garevla.ops.dropout import keep_mask
from garevla.ops.eager.hidden import EagerFunctions
from garevla.ops.hidden.engine import HiddenEngine
from garevla.ops.hidden.factors import ACTIVATIONS, FACTORS, HiddenLayer, HiddenPairs
from garevla.ops.hidden.scores import Products
from garevla.ops.hidden.tiles import (
    ComposedTiles,
    Dropout,
    MomentsGradient,
    Tile,
    TileKernels,
    Workspace,
)
from tests.conformance.error_model import NUM_ROUNDINGS, check, errors
from tests.conformance.operations import OPERATIONS, inputs_of
from tests.conformance.targets import TRITON
from tests.head.test_memory import LargestTensor
from tests.helpers import GOLDEN, Golden, relative_error

if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed", allow_module_level=True)
kernels = importlib.import_module("garevla.kernels.hidden.tiles")
LaunchConfig = importlib.import_module("garevla.kernels.configs").LaunchConfig
launching = importlib.import_module("garevla.kernels.launching")

KINDS = list(FACTORS)
# Texts, videos, frames, dim, hidden units, heads.
SIZES = [(1, 1, 1, 1, 3, 1), (17, 3, 3, 33, 40, 1), (3, 2, 17, 17, 65, 1), (33, 1, 5, 65, 17, 2)]
USUAL = (19, 3, 2, 24, 37, 1)
SEED = 2**62 + 2**31 + 12345
Found = dict[str, Tensor]


def draw(kind: str, size: tuple[int, ...], activation: str = "gelu", dropout: float = 0.3) -> Tile:
    """A tile in float64, as if from within a larger batch."""
    texts, videos, frames, dim, hidden, heads = size
    attention = heads * frames
    sizes = {"A": texts, "B": videos, "F": frames, "D": dim, "H": hidden}
    sizes |= {"N": heads, "K": attention, "S": 2 * hidden}
    factors = {
        name: torch.randn([sizes[letter] for letter in letters], dtype=torch.float64)
        for name, letters in FACTORS[kind].items()
    }
    factors["weight"] /= hidden**0.5
    shape = (videos, texts) if kind == "gap" else (videos, attention, texts)
    coefficients = 0.5 + torch.rand(shape, dtype=torch.float64)
    layer = HiddenLayer(kind, activation if kind == "gap" else "", (1e-5,) * 3, dropout)
    masks = Dropout(dropout, SEED, 1000, 70) if dropout else None
    return Tile(layer, factors, coefficients, masks)


def upstream(tile: Tile) -> tuple[Products, MomentsGradient]:
    """Gradients of what a tile comes to."""
    videos, texts = len(tile.factors["frames"]), len(tile.factors["text"])
    frames, dim = tile.factors["frames"].shape[1:]
    pairs = (torch.randn(videos, texts), torch.randn(videos, texts))
    products = Products(*pairs, torch.randn(videos, frames, texts))
    return products, MomentsGradient(*(torch.randn(videos, dim) for _ in range(3)))


def single(tile: Tile, rounding: int = 0) -> Tile:
    """The tile in float32, its numbers rounded to the nearest, or up or down by chance."""
    generator = torch.Generator().manual_seed(rounding)

    def cast(exact: Tensor) -> Tensor:
        away = torch.rand(exact.shape, generator=generator, dtype=torch.float64) - 0.5
        unit = torch.finfo(torch.float32).eps / 2 if rounding else 0.0
        return (exact * (1 + unit * away.sign())).float()

    factors = {name: cast(value) for name, value in tile.factors.items()}
    return replace(tile, factors=factors, coefficients=cast(tile.coefficients))


def on_device(tile: Tile) -> Tile:
    factors = {name: value.to(TRITON.device) for name, value in tile.factors.items()}
    return replace(tile, factors=factors, coefficients=tile.coefficients.to(TRITON.device))


def composed() -> ComposedTiles:
    return ComposedTiles(EagerFunctions(), Workspace())


def run(used: TileKernels, tile: Tile, given: tuple[Products, MomentsGradient]) -> Found:
    """All that a tile comes to, forward and backward."""
    products, moments = (type(x)(*(y.to(tile.coefficients) for y in x)) for x in given)
    found = used.forward(tile, with_moments=True)
    assert found.moments is not None
    names = ("text", "norm", "frame", "mean", "squares")
    # What is kept may be overwritten.
    values = {n: x.clone() for n, x in zip(names, (*found.products, *found.moments), strict=True)}
    coefficients, gradients = used.backward(tile, found.kept, products, moments)
    gradients |= {"coefficients": coefficients}
    return values | {f"gradient of {name}": value for name, value in gradients.items()}


def check_tile(tile: Tile, precision: str = "float32") -> None:
    """The kernels' errors are a small multiple of plain float32's."""
    given = upstream(tile)
    exact = run(composed(), tile, given)
    plain: dict[str, float] = {}
    for rounding in range(NUM_ROUNDINGS):
        for name, error in errors(run(composed(), single(tile, rounding), given), exact).items():
            plain[name] = max(plain.get(name, 0.0), error)
    found = run(kernels.TritonTiles(precision), on_device(single(tile)), given)
    assert found.keys() == exact.keys()
    sizes = (*tile.factors["weight"].shape, tile.coefficients.numel())
    check({name: value.cpu() for name, value in found.items()}, exact, plain, max(sizes))


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_agrees_with_composed_tiles(kind: str, size: tuple[int, ...]):
    check_tile(draw(kind, size))


@pytest.mark.parametrize("kind", KINDS)
def test_wide_tiles(kind: str, monkeypatch: pytest.MonkeyPatch):
    """Features in halves, the last of them not full."""
    config = LaunchConfig(rows=16, columns=256, reduction=64, num_warps=4, num_stages=1)
    monkeypatch.setattr(kernels, "hidden_config", lambda *_: config)
    check_tile(draw(kind, (9, 2, 3, 300, 70, 1)))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(activation: str):
    tile = draw("gap", (5, 2, 2, 8, 40, 1), activation, dropout=0.0)
    # Far into both tails, too.
    check_tile(replace(tile, coefficients=3 * tile.coefficients))


def test_attention_without_dropout():
    check_tile(draw("attention", (5, 2, 2, 8, 9, 1), dropout=0.0))


def read_off(tile: Tile, precision: str = "float32") -> Tensor:
    """Hidden vectors (videos, texts, size) of a tile of equal sizes: its frames' products."""
    size = tile.factors["weight"].shape[0]
    identity = torch.eye(size, dtype=torch.float64)
    factors = tile.factors | {
        "weight": identity,
        "frames": identity.expand(len(tile.coefficients), -1, -1),
        "bias": torch.zeros(size, dtype=torch.float64),
        "text_hidden": torch.zeros_like(tile.factors["text_hidden"]),
    }
    tile = on_device(single(replace(tile, factors=factors)))
    found = kernels.TritonTiles(precision).forward(tile, with_moments=False)
    return found.products.frame.mT.double().cpu()


@pytest.mark.parametrize(("precision", "bound"), [("float32", 1.5e-7), ("tf32", 1e-3)])
def test_gelu_far_and_near(precision: str, bound: float):
    size = 40
    tile = draw("gap", (17, 1, size, size, size, 1), dropout=0.0)
    x = torch.linspace(-1, 1, size).double()
    factors = tile.factors | {"video_hidden": x.unsqueeze(0), "shift": torch.zeros_like(x)}
    coefficients = torch.logspace(-3, 2, 17, dtype=torch.float64).float().double().unsqueeze(0)
    tile = replace(tile, factors=factors, coefficients=coefficients)
    found, x = read_off(tile, precision), coefficients.unsqueeze(2) * x.float()
    exact = torch.nn.functional.gelu(x)
    assert ((found - exact).abs() <= bound * x.abs()).all()


@pytest.mark.parametrize(("texts", "videos"), [(0, 0), (2**20 + 3, 2**31)])
@pytest.mark.parametrize("seed", [0, SEED, 2**63 - 1])
def test_masks_are_the_same_bits(seed: int, texts: int, videos: int):
    """Hidden vectors of ones, dropped."""
    count, size, probability = 21, 38, 0.3
    tile = draw("gap", (count, 3, size, size, size, 1), "relu", probability)
    video_hidden = torch.zeros_like(tile.factors["video_hidden"])
    shift = torch.ones_like(tile.factors["shift"])
    factors = tile.factors | {"video_hidden": video_hidden, "shift": shift}
    masks = Dropout(probability, seed, texts, videos)
    found = read_off(replace(tile, factors=factors, dropout=masks))
    text_index = texts + torch.arange(count)
    video_index = videos + torch.arange(3).unsqueeze(1)
    keep = keep_mask(seed, probability, text_index, video_index, size)
    assert torch.equal(found != 0, keep)
    assert relative_error(found, keep / (1 - probability)) < 1e-7


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("gradients", "programs"), [pytest.param(24 * 16, 1, marks=pytest.mark.slow), (24 * 19 * 2, 40)]
)
def test_chunks_and_segments_change_nothing(
    kind: str, gradients: int, programs: int, monkeypatch: pytest.MonkeyPatch
):
    tile = draw(kind, USUAL)
    given, tile = upstream(tile), on_device(single(tile))
    whole = run(kernels.TritonTiles("float32"), tile, given)
    monkeypatch.setattr("garevla.kernels.configs.HIDDEN_GRADIENTS", gradients)
    monkeypatch.setattr("garevla.kernels.configs.HIDDEN_PROGRAMS", programs)
    for name, found in run(kernels.TritonTiles("float32"), tile, given).items():
        assert relative_error(found, whole[name]) < 1e-6, name


@pytest.mark.parametrize(
    ("precision", "bound"), [("tf32x3", 2e-6), ("tf32", 5e-3), ("bfloat16", 3e-2)]
)
@pytest.mark.parametrize("kind", KINDS)
def test_precisions(kind: str, precision: str, bound: float):
    tile = draw(kind, USUAL)
    given = upstream(tile)
    exact = run(composed(), tile, given)
    found = run(kernels.TritonTiles(precision), on_device(single(tile)), given)
    wrong = {name: relative_error(found[name].cpu(), want) for name, want in exact.items()}
    assert max(wrong.values()) < bound, wrong
    if precision == "bfloat16":
        assert min(wrong.values()) > 1e-5, "the preset has no effect"


def test_unknown_precision():
    with pytest.raises(ValueError, match="precision must be one of"):
        kernels.TritonTiles("float16")


def test_a_backward_pass_has_the_forwards_precision():
    operation = "hidden_statistics of gap"
    inputs = inputs_of(operation, (5, 2, 2, 16, 16, 1), torch.float32, TRITON.device)

    def gradient(inside: bool) -> Tensor:
        found = None
        with garevla.use_precision("bfloat16"):
            loss = TRITON.function("hidden_statistics")(
                *OPERATIONS[operation].arguments(inputs)
            ).row_logsumexp.sum()
            if inside:
                found = torch.autograd.grad(loss, inputs["weight"])
        return (found or torch.autograd.grad(loss, inputs["weight"]))[0]

    assert torch.equal(gradient(inside=True), gradient(inside=False))


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, id=path.stem, marks=pytest.mark.slow if "_d64" in path.stem else ())
        for path in sorted(GOLDEN.glob("hidden_*.npz"))
    ],
)
def test_golden(path):
    """The published numbers; gradients of what needs no increments in memory."""
    golden = Golden(path)
    arguments = golden.loss_arguments()

    def evaluate(backend: str, dtype: torch.dtype) -> Found:
        device = TRITON.device if backend == "triton" else "cpu"
        psi = golden.psi().to(device, dtype)
        text, frames = (
            golden[name].to(device, dtype).requires_grad_() for name in ("text", "frames")
        )
        with golden.dropout_masks(), garevla.use_backend(backend):
            similarity, increments = garevla.gare_pairs(
                text,
                frames,
                psi,
                golden["mask"].to(device),
                pool_temperature=arguments["pool_temperature"],
            )
            bottleneck = garevla.information_bottleneck(increments)
            trust = garevla.trust_region(increments, arguments["trust_floor"])
            torch.manual_seed(2)
            weight = torch.randn(similarity.shape).to(similarity)
            total = (similarity * weight).sum() + arguments["beta"] * bottleneck + trust
            total.backward()
        found = {"similarity": similarity, "kl": bottleneck, "norm": trust}
        found["delta"] = increments.norm
        found |= {f"gradient of {n}": p.grad for n, p in psi.named_parameters()}
        found |= {"gradient of text": text.grad, "gradient of frames": frames.grad}
        return {name: value.detach().cpu() for name, value in found.items()}

    exact = evaluate("eager", torch.float64)
    for name in ("similarity", "kl", "norm"):
        if name in golden:
            assert relative_error(exact[name], golden[name]) < 1e-11, name
    assert relative_error(exact["delta"], golden["delta"].norm(dim=2)) < 1e-11
    plain = errors(evaluate("eager", torch.float32), exact)
    check(evaluate("triton", torch.float32), exact, plain, golden.meta["D"])


def test_what_needs_increments_has_them():
    operation = "hidden_terms of gap"
    inputs = inputs_of(operation, (3, 2, 2, 4, 5, 1), torch.float32)
    layer = HiddenLayer("gap", "gelu", (1e-5,))
    pairs = HiddenPairs(layer, {name: inputs[name] for name in FACTORS["gap"]}, None)
    used = kernels.TritonTiles("float32")
    assert HiddenEngine(pairs, 3.0, None, used).kernels is used
    assert isinstance(HiddenEngine(pairs, 3.0, 2.0, used).kernels, ComposedTiles)


@pytest.mark.parametrize(
    ("kind", "size", "dtype", "reason"),
    [
        ("gap", (2, 1, 65, 4, 5, 1), torch.float32, "^frames of its videos may be at most 64"),
        ("attention", (2, 1, 9, 4, 5, 8), torch.float32, "heads · frames of its videos"),
        ("gap", (2, 1, 2, 4, 5, 1), torch.float64, "no float64"),
    ],
)
def test_refusals(kind: str, size: tuple[int, ...], dtype: torch.dtype, reason: str):
    operation = f"hidden_statistics of {kind}"
    refusal = TRITON.refusal(operation, inputs_of(operation, size, dtype, TRITON.device))
    with pytest.raises(ValueError, match=reason):
        raise ValueError(refusal)


@pytest.mark.parametrize("kind", KINDS)
def test_auto_leaves_the_exact_diversity_to_others(kind: str):
    labels = (f"hidden_statistics of {kind}", f"hidden_statistics of {kind} with direction")
    entry = backends._BACKENDS["triton"].operations["hidden_statistics"]
    plain, exact = (
        entry.disadvises(*OPERATIONS[label].arguments(inputs_of(label, (3, 2, 2, 4, 5, 1))))
        for label in labels
    )
    assert plain is None
    assert "plain PyTorch" in exact


@pytest.mark.parametrize("kind", KINDS)
def test_launches_are_recorded(kind: str):
    recorded = []
    tile = draw(kind, USUAL)
    given, tile = upstream(tile), on_device(single(tile))
    with launching.recording(lambda *launch: recorded.append(launch)):
        run(kernels.TritonTiles("bfloat16"), tile, given)
    names = [kernel.__name__ for kernel, *_ in recorded]
    assert names == [f"hidden_{n}_kernel" for n in ("forward", "gradient", "adjoint", "weight")]
    for kernel, arguments, options in recorded:
        assert set(arguments) == set(kernel.arg_names)
        assert set(options) >= {"num_warps", "num_stages"}
    assert recorded[1][1]["gradient"].dtype == torch.bfloat16


@pytest.mark.parametrize("kind", KINDS)
def test_no_vector_per_pair_is_stored(kind: str, monkeypatch: pytest.MonkeyPatch):
    texts, videos, dim = 40, 12, 40
    monkeypatch.setattr("garevla.kernels.configs.HIDDEN_GRADIENTS", texts * dim)
    monkeypatch.setattr("garevla.kernels.configs.HIDDEN_PROGRAMS", 1)
    tile = draw(kind, (texts, videos, 2, dim, dim, 1))
    given, tile = upstream(tile), on_device(single(tile))
    # Launched or not makes no difference to what is allocated.
    with launching.recording(lambda *_: None), LargestTensor() as largest:
        run(kernels.TritonTiles("float32"), tile, given)
    assert largest.elements < texts * videos * dim / 2
