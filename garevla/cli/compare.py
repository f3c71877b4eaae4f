"""``garevla compare``."""

from __future__ import annotations

import argparse
from pathlib import Path

SUMMARY = "test whether two evaluated runs differ by more than chance"


def run(arguments: list[str]) -> int:
    """Print the figures of two evaluations and how probable their differences are by chance."""
    parser = argparse.ArgumentParser("garevla compare", description=SUMMARY)
    parser.add_argument("run_a", type=Path, metavar="RUN_A", help="folder of an evaluated run")
    parser.add_argument(
        "run_b", type=Path, metavar="RUN_B", help="another, or a file of figures that one wrote"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the test of the mean rank")
    flags = parser.parse_args(arguments)

    from garevla.evaluation.comparison import RankFile, compare, comparison_table

    files = [RankFile.load(path) for path in (flags.run_a, flags.run_b)]
    print(comparison_table(compare(*files, seed=flags.seed)))
    for letter, file in zip("AB", files, strict=True):
        print(f"{letter}: {file.path}")
    settings = "; ".join(f"{name}: {value}" for name, value in files[0].protocol.items())
    print(f"protocol: {settings}")
    for name, words in files[0].post_processing.items():
        print(f"{name}: {words}")
    for one, other in (files, files[::-1]):
        for name in one.post_processing.keys() - other.post_processing.keys():
            print(f"only {one.path} has {name}, which is left out")
    print("p: paired permutation test over videos, two-sided; ranks by the average rule of ties")
    return 0
