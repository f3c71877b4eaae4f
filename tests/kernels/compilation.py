"""Compiles the kernels for processors that need not be there, and says what they would use.

    python -m tests.kernels.compilation [--architectures 80 90 100] [--shapes 512,12,1 …]

prints a line of JSON for each kernel, as the operators would launch it. Runs in a process of its
own: under the interpreter, which the other tests use, nothing compiles.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import tempfile
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
import triton
from garevla.kernels import launching
from garevla.kernels.direction import direction_and_gradient
from garevla.kernels.frames.alignment import frame_alignment
from garevla.kernels.pairs import arguments, backward, scores, statistics
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

Launch = tuple[Any, dict[str, Any], dict[str, Any]]

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


def launches(dim: int, frames: int, heads: int, precision: str, arch: int) -> Iterator[Launch]:
    """Every kernel; pair_scores with and without the terms."""
    found: list[Launch] = []
    with (
        mock.patch.object(arguments, "architecture", return_value=arch),
        launching.recording(lambda *launch: found.append(launch)),
    ):
        _pairs(dim, frames, heads, precision)
        unit, basis = torch.zeros(4, 3, 100), torch.zeros(4, 3, dim)
        for with_gradient in (False, True):
            direction_and_gradient(unit, basis, 2.0, with_gradient, precision)
        captions = torch.zeros(100, frames, dim, requires_grad=True)
        video = torch.zeros(4, frames, dim)
        found_similarity = frame_alignment(
            captions, video, torch.tensor(20.0), None, None, precision
        )
        found_similarity.sum().backward()
    seen = set()
    for kernel, values, options in found:
        key = kernel.__name__, *(value is None for value in values.values())
        if key not in seen:
            yield kernel, values, options
        seen.add(key)


def _pairs(dim: int, frames: int, heads: int, precision: str) -> None:
    """Launch the pair kernels, forward and backward."""
    attention, videos, texts = heads * frames, 4, 100
    shapes = [
        (2 * attention + frames + 2, dim),
        (frames,),
        (heads, frames),
        (heads, frames),
        (dim,),
        (attention, attention),
        (attention + 1, attention + 1),
        (attention + 2, attention + 2),
        (frames, frames),
        (attention + 2, frames),
    ]
    factors = [torch.zeros(videos, *shape) for shape in shapes]
    factors[1] = factors[1].bool()
    text = torch.zeros(texts, dim)
    pairs = arguments.PairArguments(text, factors, 3.0, [1e-5] * 3, precision)
    for with_terms in (False, True):
        scores.pair_scores(pairs, with_terms=with_terms)
    scale, targets = torch.ones(()), torch.zeros(texts, dtype=torch.int64)
    samples = torch.zeros(texts, 4, dtype=torch.int64)
    row, column, target, norm_mean, variance, mean, covariance, sampled = (
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
        sampled,
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--architectures", nargs="+", type=int, default=[80, 90, 100])
    parser.add_argument("--shapes", nargs="+", default=["512,12,1"], help="D,F,heads")
    parser.add_argument("--precisions", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--kernels", nargs="+", default=[], help="of these names alone")
    options = parser.parse_args()
    for shape in options.shapes:
        dim, frames, heads = map(int, shape.split(","))
        for precision in options.precisions:
            for arch in options.architectures:
                case = {"triton": triton.__version__, "arch": arch, "shape": shape}
                case["precision"] = precision
                for kernel, values, launched in launches(dim, frames, heads, precision, arch):
                    if not options.kernels or kernel.__name__ in options.kernels:
                        usage = compile_launch(kernel, values, launched, arch)
                        print(json.dumps(case | usage), flush=True)


if __name__ == "__main__":
    main()
