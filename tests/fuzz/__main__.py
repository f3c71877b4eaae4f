"""Trials with damaged and hostile files, for as long as one likes.

``python -m tests.fuzz --minutes 10`` prints how often what came of them, and exits with 1 where
there was a crash, a hang, a traceback, or silent damage beyond what docstrings state. What cannot
be told from a file, a byte that decodes to another picture, is counted.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator

import numpy as np

from tests.fuzz import annotations, checkpoints, configs, layouts, videos

# What is tried, and its share of the time.
_KINDS: dict[str, tuple[Callable[[np.random.Generator], Iterator[str]], float]] = {
    "videos": (videos.trials, 0.55),
    "annotations": (annotations.trials, 0.1),
    "layouts": (layouts.trials, 0.1),
    "checkpoints": (checkpoints.trials, 0.1),
    "settings": (configs.trials, 0.15),
}


def main() -> int:
    """Run the trials; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="for how long, in all")
    parser.add_argument("--seed", type=int, default=0, help="of all that is drawn")
    parser.add_argument("--kinds", nargs="+", choices=_KINDS, default=list(_KINDS))
    arguments = parser.parse_args()
    logging.disable()
    whole = sum(_KINDS[kind][1] for kind in arguments.kinds)
    counts: Counter[str] = Counter()
    failures: list[str] = []
    for kind in arguments.kinds:
        trials, share = _KINDS[kind]
        end = time.monotonic() + 60 * arguments.minutes * share / whole
        running = trials(np.random.default_rng(arguments.seed))
        for outcome in running:
            what, failed, how = outcome.partition("FAILURE ")
            counts[what + (f"FAILURE {how.partition(':')[0]}" if failed else "")] += 1
            if failed:
                failures.append(outcome)
                print(outcome, file=sys.stderr, flush=True)
            if time.monotonic() > end:
                break
        running.close()
    for outcome, count in sorted(counts.items()):
        print(f"{count:7d}  {outcome}")
    print(f"{sum(counts.values())} trials, seed {arguments.seed}: {len(failures)} failures")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
