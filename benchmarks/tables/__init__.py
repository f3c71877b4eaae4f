"""Results as tables in Markdown, aligned, for terminals and for the documentation.

A table function takes a result file's rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.report import origin_of
from benchmarks.rows import Row
from benchmarks.tables.pairs import (
    growth,
    memory,
    peers,
    products,
    profile,
    stages,
    times,
)
from benchmarks.tables.retrieval import (
    queries,
    retrieval,
    search_indexing,
    search_queries,
    search_recall,
    search_sizes,
    serve,
)
from benchmarks.tables.text import Table, markdown
from benchmarks.tables.training import (
    cached,
    chunks,
    distributed,
    gathering,
    modes,
    noise,
    starts,
    steps,
    training,
    video,
)

Document = dict[str, Any]

NOTHING = "*No results of this kind are committed yet.*"

TABLES: dict[str, Callable[[list[Row]], Table]] = {
    table.__name__: table
    for table in (
        times,
        memory,
        profile,
        peers,
        growth,
        training,
        steps,
        video,
        cached,
        retrieval,
        queries,
        stages,
        modes,
        starts,
        noise,
        distributed,
        gathering,
        chunks,
        products,
        search_recall,
        search_queries,
        search_sizes,
        search_indexing,
        serve,
    )
}


def render(kind: str, document: Document, choice: dict[str, str]) -> str:
    """A table of a result file, and below it the command, the machine and the versions; where rows
    differ in these, also what was measured so.

    Args:
        kind: a key of :data:`TABLES`.
        choice: column → values divided by ``|``: only rows that have one of them.
    """
    rows = [
        row
        for row in document["growth" if kind == "growth" else "results"]
        if all(str(row.get(name)) in value.split("|") for name, value in choice.items())
    ]
    columns, lines = TABLES[kind](rows)
    if not lines:
        return NOTHING
    return "\n\n".join([markdown(columns, lines), *_origins(document, rows)])


def _origins(document: Document, rows: list[Row]) -> list[str]:
    """A paragraph for each command, machine, torch and commit that rows come from."""
    names: dict[str, dict[str, None]] = {}
    for row in rows:
        origin = {**origin_of(document), **row}
        packages = dict(package.split(" ", 1) for package in origin["versions"].split(", "))
        commit = (origin["commit"] or "unknown")[:7]
        text = f"{origin['machine']}, torch {packages['torch']}, commit {commit}"
        text = f"`{origin['command']}`; {text}"
        names.setdefault(text, {})[str(row.get("variant", row.get("implementation")))] = None
    if len(names) == 1:
        return list(names)
    return [f"{', '.join(own)}: {text}" for text, own in names.items()]
