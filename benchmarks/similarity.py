"""Time, memory and distance to the floor of the pair operation and the loss, for everyone.

    python -m benchmarks.similarity                                # a few minutes
    python -m benchmarks.similarity --preset scaling --device cuda --json out.json --plot out.png
    python -m benchmarks.similarity --batch 128 256 --limit 60     # slow ones too
    python -m benchmarks.similarity --psi gap_mlp                  # another network, 15 minutes
    python -m benchmarks.similarity --peers                        # InfoNCE alone, by others too
    python -m benchmarks.similarity --show out.json                # its tables again

Files below benchmarks/results/ name the network, if it is not the cross-attention: for all of them

    for psi in gap_mlp cross_attention_pair_dropout; do
        name=benchmarks/results/MACHINE/similarity-$psi
        python -m benchmarks.similarity --psi $psi --json $name.json --plot $name.png
    done; python -m benchmarks.figures

The published formulas in four forms and garevla's backends run side by side in one process; what
runs out of memory or would take too long is reported as such. docs/performance.md says what the
columns mean.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch

from benchmarks import memory, tables
from benchmarks.implementations import IMPLEMENTATIONS
from benchmarks.plots import plot_rows
from benchmarks.presets import Plan, add_arguments, chosen_plans
from benchmarks.profiler import Profiler
from benchmarks.report import stamp, write_csv, write_results
from benchmarks.rows import FAILED, OK, UNAVAILABLE, WRONG, Row, growth_of, series_key
from benchmarks.tables.pairs import series_of

MODULE = "benchmarks.similarity"
LEGEND = """\
One call with B texts and B videos, F frames each, D features.
  median     seconds of a call, and how many times faster than the published formulas in this run
  of floor   seconds of the bare matrix products that anyone needs, in per cent of the median
  memory     peak growth during a call, beyond inputs and parameters
  error      of the result, and the largest of all gradients': difference from a float64 oracle
             in relative norm ("bfloat16": factors of float32 products are rounded to it)
  ≈          predicted from smaller batches, not run"""


def main(arguments: list[str] | None = None) -> int:
    """Returns 1 if an implementation of this project was wrong or broke, else 0."""
    description, epilog = __doc__.split("\n\n", 1)
    parser = argparse.ArgumentParser(
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
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
        device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        try:
            plans = chosen_plans(args, device.type)
        except ValueError as error:
            parser.error(str(error))
        rows = measure(plans, device, args.json, args.csv)
        fits = growth_of(rows)
    print_results(rows, fits)
    if args.plot:
        plot_rows(rows, args.plot)
    bad = sorted({row["implementation"] for row in rows if row["status"] in (WRONG, FAILED)})
    if bad:
        print(f"wrong or failed: {'; '.join(bad)}")
    foreign = {name for name, one in IMPLEMENTATIONS.items() if one.foreign}
    return 1 if set(bad) - foreign else 0


def measure(
    plans: tuple[Plan, ...],
    device: torch.device,
    json_path: Path | None = None,
    csv_path: Path | None = None,
) -> list[dict[str, Any]]:
    """Run plans, writing the files after every case."""
    # Of compilation: what it cannot do, and advice.
    warnings.filterwarnings("ignore", module=r"torch\.")
    rows: list[dict[str, Any]] = []
    origin = stamp(MODULE, device)
    begin = time.monotonic()
    with _progress_bar(sum(len(plan.cases()) for plan in plans)) as bar:
        for plan in plans:
            profiler = Profiler(plan, device, bar.set_postfix_str if bar else lambda what: None)
            for case in plan.cases():
                rows += [{**row, **origin} for row in profiler.rows_of(case)]
                if bar:
                    bar.update()
                if json_path:
                    write_results(
                        json_path,
                        MODULE,
                        rows,
                        device=device,
                        memory_measured_by=memory.method(device),
                        allow_tf32=torch.backends.cuda.matmul.allow_tf32,
                        copy_bytes_per_second=profiler.bandwidth,
                        elapsed_seconds=time.monotonic() - begin,
                        growth=growth_of(rows),
                    )
                if csv_path:
                    write_csv(csv_path, rows)
    return rows


def print_results(rows: list[Row], fits: list[Row]) -> None:
    """Print every series, how it grows, and what has no part in it."""
    print(LEGEND)
    for title, members in series_of(rows).items():
        print(f"\n{title}\n")
        batches = {row["batch"] for row in members if row["status"] == OK}
        if batches:
            measured = [row for row in members if row["batch"] in batches]
            print(tables.markdown(*tables.profile(measured)))
        _print_reasons([row for row in members if row["status"] != UNAVAILABLE])
        own = [fit for fit in fits if series_key(fit) == series_key(members[0])]
        if own:
            print(f"\n{tables.markdown(*tables.growth(own))}")
    reasons: dict[str, dict[str, None]] = {}
    for row in rows:
        if row["status"] == UNAVAILABLE:
            reasons.setdefault(row["reason"], {})[row["implementation"]] = None
    if reasons:
        print("\nNot in the tables, or not in all of them:")
    for reason, names in reasons.items():
        print(f"  {'; '.join(names)}: {reason}")


def _print_reasons(rows: list[Row]) -> None:
    """Why rows have no time, or one that is too long: a line for each batch and reason."""
    reasons: dict[tuple[int, str], list[str]] = {}
    for row in rows:
        if row["status"] != OK:
            what = f"{row['status']}: {row['reason']}"
        elif 2 * row.get("contended_samples", 0) >= len(row["seconds"]):
            what = "slower than it is: other processes took cores meanwhile"
        else:
            continue
        reasons.setdefault((row["batch"], what), []).append(row["implementation"])
    for (batch, what), names in reasons.items():
        everyone = len(names) == sum(row["batch"] == batch for row in rows)
        print(f"B = {batch}, {'everyone' if everyone else '; '.join(names)}: {what}")


def _progress_bar(total: int) -> Any:
    """Context manager of a tqdm bar of cases, shown on terminals only; of None without tqdm."""
    try:
        from tqdm import tqdm
    except ImportError:
        return contextlib.nullcontext()
    return tqdm(total=total, disable=None, leave=False)


if __name__ == "__main__":
    sys.exit(main())
