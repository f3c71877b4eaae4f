"""Puts committed results into the documentation: no figure there is typed in.

    python -m benchmarks.figures            # rewrite the tables and plots
    python -m benchmarks.figures --check    # fail where the text is not what the results say

A table goes between two comments in a Markdown file, and names its kind, its result file and, as
``name=value``, what is to be chosen of it::

    <!-- results: compare cpu-2core/similarity.json workload=loss direction=off -->
    <!-- end of results -->
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.plots import plot_rows
from benchmarks.similarity_tables import case_of
from benchmarks.tables import bytes_text, markdown_table, rate_text, seconds_text, times_text

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
DOCUMENTS = (ROOT / "README.md", ROOT / "docs" / "performance.md")
# Files that benchmarks.similarity wrote.
PLOTTED = ("similarity*.json", "scaling*.json")
_BLOCK = re.compile(
    r"(?P<begin><!-- results: (?P<what>[^\n]*?) -->\n).*?(?P<end><!-- end of results -->)", re.S
)
_NOTHING = "*No results of this kind are committed yet.*"

Document = dict[str, Any]
Choice = dict[str, str]


def render(text: str, results: Path = RESULTS) -> str:
    """Fill all tables of a document.

    Raises:
        ValueError: a table of unknown kind.
    """

    def fill(match: re.Match[str]) -> str:
        kind, file, *choices = shlex.split(match["what"])
        if kind not in TABLES:
            raise ValueError(f"there is no table {kind!r}, only {sorted(TABLES)}")
        path = results / file
        body = _NOTHING
        if path.exists():
            choice = dict(pair.split("=", 1) for pair in choices)
            body = TABLES[kind](json.loads(path.read_text(encoding="utf-8")), choice)
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


def _chosen(document: Document, choice: Choice) -> list[dict[str, Any]]:
    return [
        row
        for row in document["results"]
        if all(str(row.get(name)) in value.split("|") for name, value in choice.items())
    ]


def _with_origin(document: Document, table: str) -> str:
    """The table, and below it the command and the machine."""
    if table.count("\n") < 2:
        return _NOTHING
    environment = document["environment"]
    device = document.get("device", "")
    if not device or device.startswith("cpu"):
        cpu = environment["cpu"]
        device = f"{cpu['usable_cores']} cores ({cpu['model']})"
    torch_version = environment["packages"]["torch"]
    commit = (document.get("commit") or "unknown")[:7]
    origin = f"`{document['command']}`, {device}, torch {torch_version}, commit {commit}"
    return f"{table}\n\n{origin}"


def compare(document: Document, choice: Choice) -> str:
    """A line per case, a column per implementation: seconds, and how many times the published."""
    rows = _chosen(document, choice)
    names = list(dict.fromkeys(r["implementation"] for r in rows if r["status"] != "unavailable"))
    cases = list(dict.fromkeys(case_of(row) for row in rows))
    found = {(case_of(row), row["implementation"]): row for row in rows}
    lines = []
    for case in cases:
        label = f"{case.batch}" if case.workload == "similarity" else f"{case.batch}, {_term(case)}"
        cells = [_time_cell(found.get((case, name))) for name in names]
        lines.append([label, *cells])
    return _with_origin(document, markdown_table(["batch", *names], lines))


def profile(document: Document, choice: Choice) -> str:
    """Everything about one implementation, or several: a line per row."""
    columns = ["batch", "implementation", "median", "pairs/s", "of floor", "memory", "error"]
    lines = []
    for row in _chosen(document, choice):
        if row["status"] == "unavailable":
            continue
        head = [str(row["batch"]), row["implementation"], _time_cell(row)]
        if row["status"] != "ok":
            lines.append([*head, "", "", "", ""])
            continue
        peak = row["peak_growth_bytes"]
        lines.append(
            [
                *head,
                rate_text(row["pairs_per_second"]),
                f"{100 * row['floor_fraction']:.0f} %",
                "unknown" if peak is None else bytes_text(peak),
                f"{row['relative_error']:.0e}",
            ]
        )
    return _with_origin(document, markdown_table(columns, lines))


def growth(document: Document, choice: Choice) -> str:
    """Exponents of time and memory over the batch size."""
    lines = []
    for fit in _chosen({"results": document["growth"]}, choice):
        exponents = (fit["time_exponent"], fit["memory_exponent"])
        cells = ["unknown" if value is None else f"B^{value:.2f}" for value in exponents]
        batches = f"{fit['batches'][0]} – {fit['batches'][-1]}"
        what = [fit["workload"], f"direction {fit['direction']}"][: 1 + (fit["workload"] == "loss")]
        lines.append([fit["implementation"], ", ".join([*what, fit["passes"]]), *cells, batches])
    columns = ["implementation", "what", "time", "memory", "batches"]
    return _with_origin(document, markdown_table(columns, lines))


def training(document: Document, choice: Choice) -> str:
    """Steps per second, encoder and head apart."""
    lines = [
        [
            f"{row['model']}, {row['mode']}, {row['batch']}",
            row["head"],
            f"{row['steps_per_second']:.2f}",
            seconds_text(row["encoder_seconds"]),
            seconds_text(row["head_seconds"]),
            bytes_text(row["step_peak_growth_bytes"] or 0),
        ]
        for row in _chosen(document, choice)
    ]
    columns = ["model, mode, batch", "head", "steps/s", "encoder", "head's", "memory of a step"]
    return _with_origin(document, markdown_table(columns, lines))


def video(document: Document, choice: Choice) -> str:
    """Frames per second of each reader that is there."""
    lines = [
        [row["reader"], row["task"], row["version"], f"{row['frames_per_second']:.0f}"]
        for row in _chosen(document, choice)
        if row["status"] == "ok"
    ]
    columns = ["reader", "task", "version", "frames/s"]
    return _with_origin(document, markdown_table(columns, lines))


TABLES: dict[str, Callable[[Document, Choice], str]] = {
    table.__name__: table for table in (compare, profile, growth, training, video)
}


def _term(case: Any) -> str:
    return {"off": "without `direction`", "exact": "all", "sampled": "sampled"}[case.direction]


def _time_cell(row: dict[str, Any] | None) -> str:
    if row is None or row["status"] == "unavailable":
        return "–"
    if row["status"] != "ok":
        predicted = row.get("predicted_seconds")
        about = f", about {seconds_text(predicted)}" if predicted else ""
        return f"{row['status']}{about}"
    times = row.get("times_published")
    faster = f" ({times_text(times)})" if times and row["implementation"] != "published" else ""
    return seconds_text(row["median_seconds"]) + faster


if __name__ == "__main__":
    sys.exit(main())
