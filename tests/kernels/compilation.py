"""Compiles the pair kernels for processors that need not be there, and says what they would use.

    python -m tests.kernels.compilation [--architectures 80 90 100] [--shapes 512,12,1 …]

Runs in a process of its own: under the interpreter, which the other tests use, nothing compiles.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource

from garevla.kernels import arguments, pair_backward, pair_scores, pair_statistics

_TYPES = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float64: "*fp64",
    torch.int64: "*i64",
    torch.int32: "*i32",
    torch.bool: "*i1",
}


def compile_launch(
    kernel: Any, values: dict[str, Any], options: dict[str, Any], arch: int
) -> dict[str, Any]:
    """Shared memory, registers and spills of a kernel as it would be launched."""
    signature, constants, attributes = {}, {}, {}
    for position, parameter in enumerate(kernel.params):
        name, value = parameter.name, values[parameter.name]
        if parameter.is_constexpr or value is None:
            signature[name] = "constexpr"
            constants[name] = value
        elif isinstance(value, Tensor):
            signature[name] = _TYPES[value.dtype]
            attributes[position,] = [["tt.divisibility", 16]]
        else:
            signature[name] = "i32"
    source = ASTSource(kernel, signature, constants, attributes)
    compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    usage = _assemble(compiled.asm["ptx"], arch)
    return {"kernel": kernel.__name__, "shared": compiled.metadata.shared, **options, **usage}


def _assemble(ptx: str, arch: int) -> dict[str, int]:
    ptxas = get_ptxas(arch).path
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.ptx"
        path.write_text(ptx)
        suffix = "a" if arch >= 90 else ""
        command = [ptxas, "-v", f"-arch=sm_{arch}{suffix}", path, "-o", path.with_suffix(".cubin")]
        report = subprocess.run(command, capture_output=True, text=True).stderr
    if "Used" not in report:
        raise RuntimeError(report)
    numbers = {
        "registers": r"Used (\d+) registers",
        "spill_stores": r"(\d+) bytes spill stores",
        "spill_loads": r"(\d+) bytes spill loads",
    }
    return {k: int(re.search(pattern, report).group(1)) for k, pattern in numbers.items()}


def launches(dim: int, frames: int, heads: int, precision: str, arch: int) -> list[tuple[Any, ...]]:
    """Every pair kernel, as the operators would launch it for this shape."""
    found: list[tuple[Any, ...]] = []
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
    with (
        mock.patch.object(arguments, "architecture", return_value=arch),
        arguments.recording(lambda *launch: found.append(launch)),
    ):
        pairs = arguments.PairArguments(
            torch.zeros(texts, dim), factors, 3.0, [1e-5] * 3, precision
        )
        pair_scores.pair_scores(pairs, with_terms=False)
        pair_scores.pair_scores(pairs, with_terms=True)
        scale, targets = torch.ones(()), torch.zeros(texts, dtype=torch.int64)
        samples = torch.zeros(texts, 4, dtype=torch.int64)
        statistics = pair_statistics.pair_statistics(pairs, scale, targets, samples)
        similarity = torch.zeros(videos, texts)
        pair_backward.pair_terms_backward(pairs, similarity, None, None)
        row, column, target, norm_mean, variance, mean, covariance, sampled = statistics
        pair_backward.pair_statistics_backward(
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
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--architectures", nargs="+", type=int, default=[80, 90, 100])
    parser.add_argument("--shapes", nargs="+", default=["512,12,1"], help="D,F,heads")
    parser.add_argument("--precisions", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--kernels", nargs="+", default=[])
    options = parser.parse_args()
    for shape in options.shapes:
        dim, frames, heads = map(int, shape.split(","))
        for precision in options.precisions:
            for arch in options.architectures:
                seen = set()
                for kernel, values, launch_options in launches(dim, frames, heads, precision, arch):
                    constants = [v for v in values.values() if not isinstance(v, Tensor)]
                    key = kernel.__name__, str(constants)
                    wanted = not options.kernels or kernel.__name__ in options.kernels
                    if key in seen or not wanted:
                        continue
                    seen.add(key)
                    usage = compile_launch(kernel, values, launch_options, arch)
                    case = {"arch": arch, "shape": shape, "precision": precision}
                    print(json.dumps(case | usage), flush=True)


if __name__ == "__main__":
    main()
