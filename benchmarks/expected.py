"""Times expected of the pair kernels on a GPU, by what their machine code does: a cost model.

    python -m benchmarks.expected              prints the table
    python -m benchmarks.expected --markdown   writes it into docs/kernels.md

What a measured time is to be compared with.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from benchmarks.tables.text import markdown

DOCUMENT = Path(__file__).parents[1] / "docs" / "kernels.md"
BEGIN = "<!-- begin: written by python -m benchmarks.expected --markdown -->"
END = "<!-- end of expected times -->"

# An H200: 132 multiprocessors at 1.755 GHz, four warp instructions and one wavefront from shared
# memory a cycle each; what matrix products and memory reach, not their peaks.
MULTIPROCESSOR_CYCLES = 132 * 1.755e9
INSTRUCTIONS = 4 * MULTIPROCESSOR_CYCLES
WAVEFRONTS = MULTIPROCESSOR_CYCLES
CACHE_BYTES = 5.5e12
MEMORY_BYTES = 4.3e12
OPERATIONS = {"float32": 51e12, "tf32": 400e12}

PAIRS = 4096**2
DIM, FRAMES = 512, 12
ROWS = 3 * FRAMES + 2


@dataclass(frozen=True)
class Counts:
    """Of one kernel, per pair: warp instructions, shared-memory wavefronts, bytes from the L2
    cache."""

    instructions: float
    wavefronts: float
    cache_bytes: float

    def seconds(self) -> float:
        """At A = B = 4096, by whichever takes longest."""
        a_pair = (
            self.instructions / INSTRUCTIONS,
            self.wavefronts / WAVEFRONTS,
            self.cache_bytes / CACHE_BYTES,
        )
        return PAIRS * max(a_pair)


# PTX of sm_90 executed in emulation, at D = 512, F = 12, one head, 256 texts; in tf32 and bfloat16
# of programs that walk through all of them, else of a program for each tile.
TRITON = {
    ("pair_scores", "float32"): Counts(1052, 1261, 2980),
    ("pair_scores", "tf32x3"): Counts(553, 129, 3074),
    ("pair_scores", "tf32"): Counts(107, 3, 1754),
    ("pair_scores", "bfloat16"): Counts(60, 3, 682),
    ("pair_statistics", "float32"): Counts(1227, 2114, 3861),
    ("pair_statistics", "tf32x3"): Counts(606, 163, 3949),
    ("pair_statistics", "tf32"): Counts(199, 4, 2765),
    ("pair_statistics", "bfloat16"): Counts(99, 7, 946),
    ("pair_adjoint", "float32"): Counts(2104, 2315, 5487),
    ("pair_adjoint", "tf32x3"): Counts(1878, 486, 3781),
    ("pair_adjoint", "tf32"): Counts(234, 7, 3670),
    ("pair_adjoint", "bfloat16"): Counts(165, 6, 1962),
}
# Of the kernel that takes the product of a library.
NATIVE_INSTRUCTIONS = 77


def native_scores(precision: str) -> float:
    """Seconds of native's scores: a product that writes R numbers a pair, a kernel that reads
    them."""
    # PyTorch's own products know no other precisions (garevla.ops.precision).
    rate = OPERATIONS[{"tf32x3": "float32", "bfloat16": "tf32"}.get(precision, precision)]
    transfer = 4 * ROWS / MEMORY_BYTES
    product = max(2 * ROWS * DIM / rate, transfer)
    return PAIRS * (product + max(NATIVE_INSTRUCTIONS / INSTRUCTIONS, transfer))


def table() -> str:
    """Milliseconds by kernel and precision."""
    kernels = dict.fromkeys(kernel for kernel, _ in TRITON)
    lines = []
    for precision in dict.fromkeys(precision for _, precision in TRITON):
        times = [native_scores(precision)]
        times += [TRITON[kernel, precision].seconds() for kernel in kernels]
        lines.append([f"`{precision}`", *(f"{1000 * seconds:.1f} ms" for seconds in times)])
    columns = ["<precision", "`native`, scores", *(f"`triton`, `{kernel}`" for kernel in kernels)]
    return markdown(columns, lines)


def replaced(document: str) -> str:
    """The document with the table of today between its markers."""
    before, begin, rest = document.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{DOCUMENT} must contain the lines {BEGIN!r} and {END!r}, in this order")
    return f"{before}{BEGIN}\n\n{table()}\n\n{END}{after}"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--markdown", action="store_true", help="write docs/kernels.md's table")
    if parser.parse_args().markdown:
        DOCUMENT.write_text(replaced(DOCUMENT.read_text()))
    else:
        print(table())


if __name__ == "__main__":
    main()
