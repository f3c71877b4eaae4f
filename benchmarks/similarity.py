"""Time, memory and distance to the floor of the pair operation and the loss, for everyone.

    python -m benchmarks.similarity                                # a few minutes
    python -m benchmarks.similarity --preset scaling --device cuda --json out.json --plot out.png
    python -m benchmarks.similarity --batch 128 256 --limit 60     # slow ones too
    python -m benchmarks.similarity --show out.json                # its tables again

The published formulas in four forms and garevla's backends run side by side in one process; what
runs out of memory or would take too long is reported as such. docs/performance.md says what the
columns mean.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch

from benchmarks import memory
from benchmarks.plots import plot_rows
from benchmarks.presets import add_arguments, chosen_plans
from benchmarks.profiler import Profiler
from benchmarks.progress import Progress
from benchmarks.report import stamp, write_csv, write_results
from benchmarks.rows import FAILED, WRONG, growth_of
from benchmarks.similarity_tables import print_tables

MODULE = "benchmarks.similarity"


def main(arguments: list[str] | None = None) -> int:
    """Returns 1 if an implementation was wrong or broke, else 0."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser)
    parser.add_argument("--device", help="default: cuda where there is one, else cpu")
    parser.add_argument("--json", type=Path, help="write the results here, case by case")
    parser.add_argument("--csv", type=Path, help="write the rows here too")
    parser.add_argument("--plot", type=Path, help="draw time and memory (PNG, needs matplotlib)")
    parser.add_argument("--show", type=Path, help="print tables of a JSON file, measure nothing")
    args = parser.parse_args(arguments)
    if args.show:
        document = json.loads(args.show.read_text(encoding="utf-8"))
        rows, fits = document["results"], document["growth"]
    else:
        rows = measure(args, parser)
        fits = growth_of(rows)
    print_tables(rows, fits)
    if args.plot:
        plot_rows(rows, args.plot)
    bad = sorted({row["implementation"] for row in rows if row["status"] in (WRONG, FAILED)})
    if bad:
        print(f"wrong or failed: {'; '.join(bad)}")
    return 1 if bad else 0


def measure(args: argparse.Namespace, parser: argparse.ArgumentParser) -> list[dict[str, Any]]:
    """Run the chosen plans, writing the files after every case."""
    device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    try:
        plans = chosen_plans(args, device.type)
    except ValueError as error:
        parser.error(str(error))
    # Of compilation: what it cannot do, and advice.
    warnings.filterwarnings("ignore", module=r"torch\.")
    rows: list[dict[str, Any]] = []
    origin = stamp(MODULE, device)
    begin = time.monotonic()
    with Progress(sum(len(plan.cases()) for plan in plans)) as progress:
        for plan in plans:
            profiler = Profiler(plan, device, progress.say)
            for case in plan.cases():
                rows += [{**row, **origin} for row in profiler.rows_of(case)]
                progress.advance()
                if args.json:
                    write_results(
                        args.json,
                        MODULE,
                        rows,
                        device=device,
                        memory_measured_by=memory.method(device),
                        allow_tf32=torch.backends.cuda.matmul.allow_tf32,
                        copy_bytes_per_second=profiler.bandwidth,
                        elapsed_seconds=time.monotonic() - begin,
                        growth=growth_of(rows),
                    )
                if args.csv:
                    write_csv(args.csv, rows)
    return rows


if __name__ == "__main__":
    sys.exit(main())
