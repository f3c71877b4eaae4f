"""Compiles the kernels of direction and frame alignment for processors that need not be there.

    python -m tests.kernels.ahead_of_time 90,bfloat16,512,12 …

prints a line of JSON for each kernel, compiled for that architecture, precision, D and F. A process
of its own: under the interpreter, which the other tests use, nothing compiles.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource

# Modules by name: the package has functions of the same names.
direction = importlib.import_module("garevla.kernels.direction")
alignment = importlib.import_module("garevla.kernels.frame_alignment")

POINTERS = {
    "caption_mask": "*u8",
    "frame_mask": "*u8",
    "caption_index": "*i8",
    "frame_index": "*i8",
}
SCALARS = {"num_texts": "i32", "num_videos": "i32", "stride": "i64", "exponent": "fp32"}
OPERANDS = ("directions", "captions", "frames")


def kernels(dim: int, frames: int, precision: str) -> Iterator[tuple[Any, dict[str, Any]]]:
    """The kernels, with constants and options as they would be launched."""
    yield direction.direction_value, direction.value_configuration(dim, precision)
    yield direction.direction_gradient, direction.gradient_configuration(dim, precision)
    shape = frames, frames, dim, precision
    for kernel, tiles in (
        (alignment.frame_alignment, alignment.SIMILARITY_TILES),
        (alignment.frame_alignment_maxima, alignment.MAXIMA_TILES),
    ):
        yield kernel, alignment.cosine_configuration(tiles[precision], *shape)
    for kernel in (alignment.frame_alignment_captions, alignment.frame_alignment_frames):
        yield kernel, alignment.product_configuration(*shape)


def usage(kernel: Any, config: dict[str, Any], precision: str, arch: int) -> dict[str, Any]:
    """Shared memory, registers and spills in bytes of a compiled kernel."""
    constants = {k: v for k, v in config.items() if not k.startswith("num_")}
    options = {k: v for k, v in config.items() if k.startswith("num_")}
    signature, attributes = {}, {}
    for position, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name] = "constexpr"
            continue
        operand = "*bf16" if precision == "bfloat16" and name in OPERANDS else "*fp32"
        signature[name] = SCALARS.get(name) or POINTERS.get(name) or operand
        # As PyTorch allocates; rows of all widths asked for here are as long.
        if name not in SCALARS or name == "stride":
            attributes[position,] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constants, attributes)
    compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    report = assemble(compiled.asm["ptx"], arch)
    return {
        "kernel": kernel.__name__,
        "shared": compiled.metadata.shared,
        "registers": int(re.search(r"Used (\d+) registers", report)[1]),
        "spills": sum(map(int, re.findall(r"(\d+) bytes spill", report))),
    }


def assemble(ptx: str, arch: int) -> str:
    """What ptxas has to say."""
    ptxas = get_ptxas(arch) if get_ptxas.__code__.co_argcount else get_ptxas()
    target = f"sm_{arch}a" if arch >= 90 else f"sm_{arch}"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.ptx"
        path.write_text(ptx)
        command = [ptxas.path, "-v", f"-arch={target}", path, "-o", path.with_suffix(".cubin")]
        result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(result.stderr)
    return result.stderr


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("cases", nargs="*", default=["90,bfloat16,512,12"])
    for case in parser.parse_args().cases:
        arch, precision, dim, frames = case.split(",")
        for kernel, config in kernels(int(dim), int(frames), precision):
            found = {"case": case} | usage(kernel, config, precision, int(arch))
            print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
