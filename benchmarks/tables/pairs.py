"""Tables of the loss and its parts."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.cases import Case
from benchmarks.implementations import PUBLISHED
from benchmarks.rows import OK, UNAVAILABLE, Row
from benchmarks.tables.text import (
    Table,
    bytes_text,
    error_text,
    rate_text,
    seconds_text,
    three_digits,
    times_text,
)


def times(rows: list[Row]) -> Table:
    """A line per case, a column per implementation: seconds, and how many times the published."""
    return _side_by_side(rows, _time_cell)


def memory(rows: list[Row]) -> Table:
    """The same of the peak growth of memory."""
    return _side_by_side(rows, _memory_cell)


def profile(rows: list[Row]) -> Table:
    """Everything about each implementation: a line per row."""
    columns = ["batch", "<implementation", "median", "quartiles", "pairs/s", "of floor", "memory"]
    lines = []
    for row in rows:
        if row["status"] == UNAVAILABLE:
            continue
        line = [str(row["batch"]), row["implementation"], _time_cell(row)]
        errors = [error_text(row.get(key)) for key in ("relative_error", "gradient_error")]
        if row["status"] == OK:
            line += [
                _spread(row),
                rate_text(row["pairs_per_second"]),
                f"{100 * row['floor_fraction']:.0f} %",
            ]
        else:
            line += [""] * 3
        lines.append([*line, _memory_cell(row), *errors])
    return [*columns, "error", "of gradients"], lines


def peers(rows: list[Row]) -> Table:
    """A line per implementation, a column per batch: seconds and memory; why some have none."""
    batches = sorted({row["batch"] for row in rows})
    lines = []
    for workload, name in dict.fromkeys((row["workload"], row["implementation"]) for row in rows):
        own = [row for row in rows if (row["workload"], row["implementation"]) == (workload, name)]
        by_batch = {row["batch"]: row for row in own}
        whole = f", whole GARE loss, F = {own[0]['frames']}" if workload == "loss" else ""
        line = [(own[0].get("version") or name) + whole, own[0].get("precision", "")]
        line += [_peer_cell(by_batch.get(batch)) for batch in batches]
        for key in ("relative_error", "gradient_error"):
            line.append(error_text(max((row[key] for row in own if row.get(key)), default=None)))
        reasons = dict.fromkeys(row["reason"] for row in own if row["reason"])
        lines.append([*line, "; ".join(reasons)])
    columns = ["<implementation", "<precision", *(f"B = {batch}" for batch in batches)]
    return [*columns, "error", "of gradients", "<remark"], lines


def growth(fits: list[Row]) -> Table:
    """Exponents of time and memory over the batch size."""
    lines = []
    for fit in fits:
        exponents = (fit["time_exponent"], fit["memory_exponent"])
        cells = ["unknown" if value is None else f"B^{value:.2f}" for value in exponents]
        batches = f"{fit['batches'][0]} – {fit['batches'][-1]}"
        what = f"{_workload(fit)}{_term(fit)}, {fit['passes']}"
        lines.append([fit["implementation"], what, *cells, batches])
    return ["<implementation", "<what", "time", "memory", "batches"], lines


def stages(rows: list[Row]) -> Table:
    """Parts of the loss beside their bare matrix products."""
    lines = []
    for row in rows:
        own, products = row["median_seconds"], row["products_seconds"]
        cells = ["–", "–"]
        if products > 1e-4:
            cells = [seconds_text(products), f"{100 * products / own:.0f} %"]
        lines.append([row["stage"], seconds_text(own), *cells])
    return ["<stage", "time", "its bare products", "share"], lines


def products(rows: list[Row]) -> Table:
    """A line per product: GFLOP/s and relative error of PyTorch's own and of oneDNN's."""
    columns = ["<product", "rows × features × outputs", "PyTorch's own", "oneDNN's"]

    def cell(row: Row, name: str) -> str:
        rate = row.get(f"{name}_gflops")
        if rate is None:
            return "–"
        return f"{three_digits(rate)} GFLOP/s, {error_text(row[f'{name}_error'])}"

    lines = [
        [row["task"], " × ".join(map(str, row["shape"])), cell(row, "torch"), cell(row, "onednn")]
        for row in rows
    ]
    return columns, lines


def case_of(row: Row) -> Case:
    """The case that a row belongs to; older files name no ψ."""
    return Case(**{name: row[name] for name in Case.__dataclass_fields__ if name in row})


def series_of(rows: list[Row]) -> dict[str, list[Row]]:
    """Rows by title of their series, in order of appearance."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(case_of(row).title, []).append(row)
    return groups


def _side_by_side(rows: list[Row], cell: Callable[[Row | None], str]) -> Table:
    there = {row["implementation"] for row in rows if row["status"] != UNAVAILABLE}
    names = [name for name in dict.fromkeys(row["implementation"] for row in rows) if name in there]
    cases: dict[Case, dict[str, Row]] = {}
    for row in rows:
        cases.setdefault(case_of(row), {})[row["implementation"]] = row
    lines = []
    for case, found in cases.items():
        cells = [cell(found.get(name)) for name in names]
        if any(text != "–" for text in cells):
            lines.append([f"{case.batch}{_term(vars(case))}", *cells])
    return ["<batch", *names], lines


def _term(row: Row) -> str:
    if row["workload"] != "loss":
        return ""
    terms = {"off": ", without `direction`", "exact": "", "sampled": ", `direction` sampled"}
    return terms[row["direction"]]


def _workload(row: Row) -> str:
    return "InfoNCE alone" if row["workload"] == "info_nce" else row["workload"]


def _time_cell(row: Row | None) -> str:
    if row is None or row["status"] == UNAVAILABLE:
        return "–"
    if row["status"] != OK:
        return _missing(row, "predicted_seconds", seconds_text)
    factor = row.get("times_published")
    once = ", once" if len(row["seconds"]) == 1 else ""
    faster = f" ({times_text(factor)})" if factor and row["implementation"] != PUBLISHED else ""
    return seconds_text(row["median_seconds"]) + once + faster


def _peer_cell(row: Row | None) -> str:
    if row is None or row["status"] != OK:
        return "–" if row is None or row["status"] == UNAVAILABLE else row["status"]
    return f"{seconds_text(row['median_seconds'])}, {bytes_text(row['peak_growth_bytes'])}"


def _memory_cell(row: Row | None) -> str:
    if row is None or row["status"] == UNAVAILABLE:
        return "–"
    if row["status"] != OK:
        return _missing(row, "predicted_bytes", bytes_text)
    return bytes_text(row["peak_growth_bytes"])


def _missing(row: Row, key: str, text: Callable[[float], str]) -> str:
    predicted = row.get(key)
    return row["status"] + (f", ≈ {text(predicted)}" if predicted else "")


def _spread(row: Row) -> str:
    """Quartiles; of one or two samples, that they are so few."""
    count = len(row["seconds"])
    if count < 3:
        return "one call" if count == 1 else f"{count} calls"
    quartiles = (row["lower_quartile_seconds"], row["upper_quartile_seconds"])
    return " – ".join(seconds_text(value) for value in quartiles)
