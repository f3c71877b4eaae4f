"""Compiles the kernels for processors that need not be there, and says what they would use.

    python -m tests.kernels.compilation [--architectures 80 90 120] [--shapes 512,12,1 …]

prints a line of JSON for each kernel, as the operators would launch it; with --markdown it writes
the tables of docs/kernels.md, with the Triton that is installed. Runs in a process of its
own: under the interpreter, which the other tests use, nothing compiles.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from torch import Tensor
from torch.utils._pytree import tree_leaves
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from garevla.increments.low_rank.factors import PAIR_FACTORS, factor_sizes
from garevla.kernels import launching
from garevla.kernels.backend import LARGEST_HIDDEN
from garevla.kernels.direction import direction_and_gradient
from garevla.kernels.frames.alignment import frame_alignment
from garevla.kernels.hidden import tiles
from garevla.kernels.pairs import arguments, backward, scores, statistics
from garevla.ops.hidden.factors import FACTORS, HiddenLayer
from garevla.ops.hidden.scores import Products
from garevla.ops.hidden.tiles import Dropout, MomentsGradient, Tile

Launch = tuple[Any, dict[str, Any], dict[str, Any]]

DOCUMENT = Path(__file__).parents[2] / "docs" / "kernels.md"
BEGIN = "<!-- begin: written by python -m tests.kernels.compilation --markdown -->"
END = "<!-- end -->"
SHARED_MEMORY = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}
"""KB that a program may have at most, by compute capability times ten."""
ARCHITECTURES = list(SHARED_MEMORY)
PRECISIONS_SHOWN = ["float32", "bfloat16"]
SHAPES_OF_PAIRS = ["512,12,1", "512,32,1", "512,64,1", "512,126,1"]

_TYPES = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float64: "*fp64",
    torch.int64: "*i64",
    torch.int32: "*i32",
    torch.int16: "*i16",
    torch.int8: "*i8",
    torch.uint8: "*u8",
    torch.bool: "*i1",
}


def compile_launch(
    kernel: Any, values: dict[str, Any], options: dict[str, Any], arch: int
) -> dict[str, Any]:
    """Bytes of shared memory and of spilled registers, and registers, of a kernel."""
    signature, constants, attributes = {}, {}, {}
    for position, parameter in enumerate(kernel.params):
        value = values[parameter.name]
        if parameter.is_constexpr:
            signature[parameter.name] = "constexpr"
            constants[position,] = value
        else:
            described = _describe(value, (position,), constants, attributes)
            signature[parameter.name] = described
    source = ASTSource(kernel, signature, constants, attributes)
    compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    usage = _resources(compiled.asm["cubin"])
    return {"kernel": kernel.__name__, "shared": compiled.metadata.shared, **usage}


def _describe(
    value: Any, path: tuple[int, ...], constants: dict[Any, Any], attributes: dict[Any, Any]
) -> Any:
    """A value's entry in the signature; constants and alignments are written down by their path."""
    if isinstance(value, Tensor):
        attributes[path] = [["tt.divisibility", 16]]
        return _TYPES[value.dtype]
    if isinstance(value, tuple):
        inner = (_describe(x, (*path, i), constants, attributes) for i, x in enumerate(value))
        return type(value)(*inner)
    if value is None or isinstance(value, triton.language.constexpr):
        constants[path] = getattr(value, "value", None)
        return "constexpr"
    return "fp32" if isinstance(value, float) else "i32"


def _resources(cubin: bytes) -> dict[str, int]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    # Nothing but spilled registers is on the stack.
    names = {"registers": "REG", "spills": "STACK"}
    return {k: int(re.search(rf"{name}:(\d+)", report)[1]) for k, name in names.items()}


def launches(
    dim: int, frames: int, heads: int, hidden: int, precision: str, arch: int, variants: bool
) -> Iterator[Launch]:
    """Every kernel that takes these sizes; pair_scores with and without the terms, hidden layers of
    both kinds. In float64 the pair kernels alone.

    Args:
        variants: also with whatever else may be absent of the pair kernels' arguments.
    """
    recorded: list[Launch] = []
    with (
        mock.patch.object(arguments, "architecture", return_value=arch),
        mock.patch.object(tiles, "architecture", return_value=arch),
        launching.recording(lambda *launch: recorded.append(launch)),
    ):
        _pairs(dim, frames, heads, precision, variants)
        if precision != "float64":
            _others(dim, frames, precision)
        if precision != "float64" and heads * frames <= LARGEST_HIDDEN:
            for kind in FACTORS:
                _hidden(kind, dim, frames, heads, hidden, precision)
    seen = set()
    for kernel, values, options in recorded:
        key = kernel.__name__, *(value is None for value in tree_leaves(values))
        if key not in seen:
            yield kernel, values, options
        seen.add(key)


def _others(dim: int, frames: int, precision: str) -> None:
    """Launch the kernels of the direction and of the frame alignment, forward and backward."""
    unit, basis = torch.zeros(4, 3, 100), torch.zeros(4, 3, dim)
    for with_gradient in (False, True):
        direction_and_gradient(unit, basis, 2.0, with_gradient, precision)
    captions = torch.zeros(100, frames, dim, requires_grad=True)
    video = torch.zeros(4, frames, dim)
    scale = torch.tensor(20.0)
    frame_alignment(captions, video, scale, precision=precision).sum().backward()


def _pairs(dim: int, frames: int, heads: int, precision: str, variants: bool) -> None:
    """Launch the pair kernels, forward and backward."""
    videos, texts = 4, 100
    dtype = torch.float64 if precision == "float64" else torch.float32
    precision = "float32" if precision == "float64" else precision
    sizes = factor_sizes((videos, heads, frames), dim)
    factors = [
        torch.zeros(
            [sizes[letter] for letter in letters],
            dtype=torch.bool if name == "frame_mask" else dtype,
        )
        for name, letters in PAIR_FACTORS.items()
    ]
    text = torch.zeros(texts, dim, dtype=dtype)
    pairs = arguments.PairArguments(text, factors, 3.0, [1e-5] * 3, precision)
    for with_terms in (False, True):
        scores.pair_scores(pairs, with_terms=with_terms)
    scale, targets = torch.ones((), dtype=dtype), torch.zeros(texts, dtype=torch.int64)
    sampled_videos = torch.zeros(texts, 4, dtype=torch.int64)
    for samples in (None, sampled_videos) if variants else (sampled_videos,):
        row, column, target, norm_mean, variance, mean, covariance, sampled, _ = (
            statistics.pair_statistics(pairs, scale, targets, samples)
        )
        backward.pair_statistics_backward(
            pairs,
            scale,
            targets,
            samples,
            row,
            column,
            norm_mean,
            mean,
            [row, column, target, variance, mean, covariance],
            None if samples is None else sampled,
        )
    if not variants:
        return
    coefficients = torch.zeros(videos, sizes["K"], texts, dtype=dtype)
    grad = torch.zeros(videos, texts, dtype=dtype)
    for gradients in ((grad, None, None), (grad, coefficients, grad)):
        backward.pair_terms_backward(pairs, *gradients)


def _hidden(kind: str, dim: int, frames: int, heads: int, hidden: int, precision: str) -> None:
    """Launch the hidden layers' kernels, forward and backward."""
    videos, texts, attention = 4, 100, heads * frames
    sizes = {"A": texts, "B": videos, "F": frames, "D": dim, "H": hidden}
    sizes |= {"N": heads, "K": attention, "S": 2 * hidden}
    factors = {
        name: torch.zeros([sizes[letter] for letter in letters])
        for name, letters in FACTORS[kind].items()
    }
    if kind == "gap":
        layer, shape = HiddenLayer(kind, "gelu", (1e-5,)), (videos, texts)
    else:
        layer = HiddenLayer(kind, "", (1e-5,) * 3, dropout=0.3)
        shape = videos, attention, texts
    dropout = Dropout(layer.dropout, 2**62, 0, 0) if layer.dropout else None
    tile = Tile(layer, factors, torch.zeros(shape), dropout)
    kernels = tiles.TritonTiles(precision)
    found = kernels.forward(tile, with_moments=True)
    products = Products(*map(torch.zeros_like, found.products))
    moments = MomentsGradient(*(torch.zeros(videos, dim) for _ in range(3)))
    kernels.backward(tile, found.kept, products, moments)


def _variant(kernel: Any, values: dict[str, Any]) -> dict[str, Any]:
    """What else tells launches of a kernel apart."""
    if kernel.__name__.startswith("hidden_"):
        return {"layer": "gap" if values["layer"].video_values is None else "attention"}
    return {"terms": True} if values.get("coefficients") is not None else {}


def reports(
    shapes: Iterable[str],
    precisions: Iterable[str],
    architectures: Iterable[int],
    prefixes: Sequence[str] = ("",),
    variants: bool = False,
) -> Iterator[dict[str, Any]]:
    """What each kernel uses whose name begins with one of the prefixes, for shapes ``"D,F,heads"``,
    with ``",H"`` for other hidden layers than of D units."""
    for shape, precision, arch in itertools.product(shapes, precisions, architectures):
        case = {"triton": triton.__version__, "arch": arch, "shape": shape, "precision": precision}
        dim, frames, heads, *rest = map(int, shape.split(","))
        hidden = rest[0] if rest else dim
        for kernel, values, options in launches(
            dim, frames, heads, hidden, precision, arch, variants
        ):
            if kernel.__name__.startswith(tuple(prefixes)):
                more = _variant(kernel, values)
                yield case | more | compile_launch(kernel, values, options, arch)


def markdown() -> str:
    """The tables of docs/kernels.md."""
    uses: dict[tuple[str, str], list[str]] = {}
    # Hidden layers' kernels take long to compile and have a table of their own.
    short = ["pair_", "row_", "direction_", "frame_"]
    for report in reports(["512,12,1"], PRECISIONS_SHOWN, ARCHITECTURES, short):
        name = f"`{report['kernel'].removesuffix('_kernel')}`"
        if report.get("terms"):
            name += " with coefficients"
        usage = f"{report['shared'] / 1024:.1f}, {report['registers']}, {report['spills']}"
        uses.setdefault((name, report["precision"]), []).append(usage)
    largest: dict[tuple[str, str, int], list[int]] = {}
    for report in reports(SHAPES_OF_PAIRS, PRECISIONS_SHOWN, ARCHITECTURES, ["pair_"]):
        key = report["shape"], report["precision"], report["arch"]
        before = largest.get(key, [0, 0])
        largest[key] = [*map(max, before, [report["shared"], report["spills"]])]
    header = " | ".join(f"sm_{arch}" for arch in ARCHITECTURES)
    rule = "|---" * (2 + len(ARCHITECTURES)) + "|"
    lines = [
        f"By Triton {triton.__version__}, default configurations, D = 512, F = 12, one head: KB of",
        "shared memory, registers a thread, bytes of spilled registers a thread.",
        "",
        f"| kernel | precision | {header} |",
        rule,
        *(f"| {' | '.join([*key, *cells])} |" for key, cells in uses.items()),
        "",
        "KB of shared memory and bytes of spilled registers a thread by size, the most of any pair",
        "kernel. A program may have at most "
        + ", ".join(f"{limit} KB on sm_{arch}" for arch, limit in SHARED_MEMORY.items())
        + ".",
        "",
        f"| D, F | precision | {header} |",
        rule,
    ]
    for shape, precision in itertools.product(SHAPES_OF_PAIRS, PRECISIONS_SHOWN):
        of_arch = (largest[shape, precision, arch] for arch in ARCHITECTURES)
        cells = [f"{shared / 1024:.0f}, {spilled:,}" for shared, spilled in of_arch]
        size = ", ".join(shape.split(",")[:2])
        lines.append(f"| {size} | {precision} | {' | '.join(cells)} |")
    return "\n".join(lines)


def write_markdown() -> None:
    """Put the tables between the markers of docs/kernels.md."""
    tables = markdown()
    before, _, rest = DOCUMENT.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise ValueError(f"{DOCUMENT} must contain the lines {BEGIN!r} and {END!r}, in this order")
    DOCUMENT.write_text(f"{before}{BEGIN}\n\n{tables}\n\n{END}{after}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--architectures", nargs="+", type=int, default=ARCHITECTURES)
    parser.add_argument("--shapes", nargs="+", default=["512,12,1"], help="D,F,heads[,H]")
    parser.add_argument("--precisions", nargs="+", default=PRECISIONS_SHOWN)
    parser.add_argument("--kernels", nargs="+", default=[""], help="whose names begin so")
    parser.add_argument("--variants", action="store_true", help="with arguments absent, too")
    parser.add_argument("--markdown", action="store_true", help="write docs/kernels.md's tables")
    options = parser.parse_args()
    if options.markdown:
        write_markdown()
        return
    cases = options.shapes, options.precisions, options.architectures, options.kernels
    for report in reports(*cases, options.variants):
        print(json.dumps(report), flush=True)


if __name__ == "__main__":
    main()
