"""Puts committed results into the documentation: no figure there is typed in.

    python -m benchmarks.figures            # rewrite the tables and plots
    python -m benchmarks.figures --check    # fail where the text is not what the results say

A table goes between two comments in a Markdown file, and names its kind, its result file and, as
``name=value``, what is to be chosen of it::

    <!-- results: times cpu-2core/similarity.json workload=loss direction=off -->
    <!-- end of results -->
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import sys
from pathlib import Path

from benchmarks import tables
from benchmarks.plots import plot_rows

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
DOCUMENTS = (
    ROOT / "README.md",
    *(
        ROOT / "docs" / f"{name}.md"
        for name in ("adapters", "distributed", "modes", "performance", "search", "video")
    ),
)
# Files that benchmarks.similarity wrote.
PLOTTED = ("similarity*.json", "scaling*.json", "peers*.json")
_BLOCK = re.compile(
    r"(?P<begin><!-- results: (?P<what>[^\n]*?) -->\n).*?(?P<end><!-- end of results -->)", re.S
)


def render(text: str, results: Path = RESULTS) -> str:
    """Fill all tables of a document.

    Raises:
        ValueError: a table of unknown kind.
    """

    def fill(match: re.Match[str]) -> str:
        kind, file, *choices = shlex.split(match["what"])
        if kind not in tables.TABLES:
            raise ValueError(f"there is no table {kind!r}, only {sorted(tables.TABLES)}")
        path = results / file
        body = tables.NOTHING
        if path.exists():
            choice = dict(pair.split("=", 1) for pair in choices)
            body = tables.render(kind, json.loads(path.read_text(encoding="utf-8")), choice)
        return f"{match['begin']}\n{body}\n\n{match['end']}"

    return _BLOCK.sub(fill, text)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; fail if anything is")
    args = parser.parse_args(arguments)
    stale = []
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        filled = render(text)
        if filled != text:
            stale.append(document)
            if not args.check:
                document.write_text(filled, encoding="utf-8")
    for result in sorted(path for kind in PLOTTED for path in RESULTS.glob(f"*/{kind}")):
        picture = result.with_suffix(".png")
        # Another matplotlib draws other bytes: that there is a plot is all that can be checked.
        if args.check and not picture.exists():
            stale.append(picture)
        elif not args.check:
            plot_rows(json.loads(result.read_text(encoding="utf-8"))["results"], picture)
    names = ", ".join(str(path.relative_to(ROOT)) for path in stale)
    if args.check and stale:
        print(f"not what the results say: {names}; run python -m benchmarks.figures")
        return 1
    print(f"rewritten: {names}" if stale else "all tables are what the results say")
    return 0


if __name__ == "__main__":
    sys.exit(main())
