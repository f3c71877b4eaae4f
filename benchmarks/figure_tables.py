"""The tables of the documentation: result file and choice of rows → Markdown."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from benchmarks.cases import Case
from benchmarks.implementations import NAMES, PUBLISHED
from benchmarks.rows import OK, UNAVAILABLE, Row
from benchmarks.similarity_tables import case_of
from benchmarks.tables import (
    bytes_text,
    error_text,
    markdown_table,
    rate_text,
    seconds_text,
    times_text,
)

Document = dict[str, Any]
Choice = dict[str, str]
Table = tuple[list[str], list[list[str]]]

NOTHING = "*No results of this kind are committed yet.*"


def render_table(kind: str, document: Document, choice: Choice) -> str:
    """A table, and below it the command, the machine and the versions."""
    columns, lines = TABLES[kind](document, choice)
    if not lines:
        return NOTHING
    torch_version = document["environment"]["packages"]["torch"]
    commit = (document.get("commit") or "unknown")[:7]
    origin = f"{document['device']}, torch {torch_version}, commit {commit}"
    return f"{markdown_table(columns, lines)}\n\n`{document['command']}`; {origin}"


def times(document: Document, choice: Choice) -> Table:
    """A line per case, a column per implementation: seconds, and how many times the published."""
    return _side_by_side(_chosen(document["results"], choice), _time_cell)


def memory(document: Document, choice: Choice) -> Table:
    """The same of the peak growth of memory."""
    return _side_by_side(_chosen(document["results"], choice), _memory_cell)


def profile(document: Document, choice: Choice) -> Table:
    """Everything about one implementation, or several: a line per row."""
    columns = ["<batch", "<implementation", "median", "pairs/s", "of floor", "memory"]
    lines = []
    for row in _chosen(document["results"], choice):
        if row["status"] == UNAVAILABLE:
            continue
        line = [str(row["batch"]), row["implementation"], _time_cell(row), "", "", "", ""]
        if row["status"] == OK:
            errors = (row["relative_error"], row["gradient_error"])
            line[3:] = [
                rate_text(row["pairs_per_second"]),
                f"{100 * row['floor_fraction']:.0f} %",
                _bytes(row["peak_growth_bytes"]),
                ", ".join(error_text(error) for error in errors if error is not None),
            ]
        lines.append(line)
    return [*columns, "error, of gradients"], lines


def growth(document: Document, choice: Choice) -> Table:
    """Exponents of time and memory over the batch size."""
    lines = []
    for fit in _chosen(document["growth"], choice):
        exponents = (fit["time_exponent"], fit["memory_exponent"])
        cells = ["unknown" if value is None else f"B^{value:.2f}" for value in exponents]
        batches = f"{fit['batches'][0]} – {fit['batches'][-1]}"
        what = fit["workload"] if fit["workload"] == "similarity" else f"loss{_term(fit)}"
        lines.append([fit["implementation"], f"{what}, {fit['passes']}", *cells, batches])
    return ["<implementation", "<what", "time", "memory", "batches"], lines


def training(document: Document, choice: Choice) -> Table:
    """Steps per second, encoder and head apart."""
    lines = [
        [
            f"{row['model']}, {row['mode']}, {row['batch']}",
            row["head"],
            f"{row['steps_per_second']:.2f}",
            seconds_text(row["encoder_seconds"]),
            seconds_text(row["head_seconds"]),
            _bytes(row["step_peak_growth_bytes"]),
            _bytes(row["head_peak_growth_bytes"]),
        ]
        for row in _chosen(document["results"], choice)
    ]
    columns = ["<model, mode, batch", "<head", "steps/s", "encoder alone", "head alone"]
    return [*columns, "memory of a step", "of the head alone"], lines


def video(document: Document, choice: Choice) -> Table:
    """Frames per second of each reader that is there."""
    lines = [
        [
            row["task"],
            f"{row['reader']} {row['version']}",
            f"{row['frames_per_second']:.0f}",
            f"{row['files_per_second']:.1f}",
        ]
        for row in _chosen(document["results"], choice)
        if row["status"] == OK
    ]
    return ["<task", "<reader", "frames/s", "files/s"], lines


def retrieval(document: Document, choice: Choice) -> Table:
    """Texts × videos scored, the best kept; the published formulas from a slice."""
    lines = []
    for row in _chosen(document["results"], choice):
        published = seconds_text(row["published_seconds_extrapolated"])
        size = f"{row['texts']:,} × {row['videos']:,}, best {row['k']}"
        cells = [seconds_text(row["seconds"]), rate_text(row["pairs_per_second"])]
        cells += [f"{published} ({times_text(row['times_faster'])})"]
        cells += [_bytes(row["peak_growth_bytes"]), error_text(row["relative_error"])]
        lines.append([size, row["backend"], *cells])
    columns = ["<texts × videos", "<backend", "time", "pairs/s", "published, from a slice"]
    return [*columns, "memory", "error"], lines


def stages(document: Document, choice: Choice) -> Table:
    """Parts of the loss beside their bare matrix products."""
    lines = []
    for row in _chosen(document["results"], choice):
        own, products = row["median_seconds"], row["products_seconds"]
        share = f"{100 * products / own:.0f} %"
        has_products = products > 1e-4
        cells = [seconds_text(products), share] if has_products else ["–", "–"]
        lines.append([row["stage"], seconds_text(own), *cells])
    return ["<stage", "time", "its bare products", "share"], lines


TABLES: dict[str, Callable[[Document, Choice], Table]] = {
    table.__name__: table
    for table in (times, memory, profile, growth, training, video, retrieval, stages)
}


def _chosen(rows: list[Row], choice: Choice) -> list[Row]:
    return [
        row
        for row in rows
        if all(str(row.get(name)) in value.split("|") for name, value in choice.items())
    ]


def _side_by_side(rows: list[Row], cell: Callable[[Row | None], str]) -> Table:
    there = {row["implementation"] for row in rows if row["status"] != UNAVAILABLE}
    names = [name for name in NAMES if name in there]
    cases: dict[Case, dict[str, Row]] = {}
    for row in rows:
        cases.setdefault(case_of(row), {})[row["implementation"]] = row
    lines = []
    for case, found in cases.items():
        label = f"{case.batch}{_term(asdict(case))}"
        cells = [cell(found.get(name)) for name in names]
        if any(text != "–" for text in cells):
            lines.append([label, *cells])
    return ["<batch", *names], lines


def _term(row: Row) -> str:
    if row["workload"] == "similarity":
        return ""
    terms = {"off": ", without `direction`", "exact": "", "sampled": ", `direction` sampled"}
    return terms[row["direction"]]


def _time_cell(row: Row | None) -> str:
    if row is None or row["status"] == UNAVAILABLE:
        return "–"
    if row["status"] != OK:
        return _missing(row, "predicted_seconds", seconds_text)
    factor = row.get("times_published")
    once = ", once" if len(row["seconds"]) == 1 else ""
    faster = f" ({times_text(factor)})" if factor and row["implementation"] != PUBLISHED else ""
    return seconds_text(row["median_seconds"]) + once + faster


def _memory_cell(row: Row | None) -> str:
    if row is None or row["status"] == UNAVAILABLE:
        return "–"
    if row["status"] != OK:
        return _missing(row, "predicted_bytes", bytes_text)
    return _bytes(row["peak_growth_bytes"])


def _missing(row: Row, key: str, text: Callable[[float], str]) -> str:
    predicted = row.get(key)
    return row["status"] + (f", ≈ {text(predicted)}" if predicted else "")


def _bytes(count: int | None) -> str:
    return "unknown" if count is None else bytes_text(count)
