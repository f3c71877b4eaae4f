"""Results as tables in Markdown, aligned, for terminals and for the documentation.

A table function takes a result file's rows and returns columns and lines of text; a column named
with a leading ``<`` is aligned to the left.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.cases import Case
from benchmarks.implementations import PUBLISHED
from benchmarks.report import origin_of
from benchmarks.rows import OK, UNAVAILABLE, Row

Document = dict[str, Any]
Table = tuple[list[str], list[list[str]]]

NOTHING = "*No results of this kind are committed yet.*"


def markdown(columns: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table in Markdown whose source is aligned too."""
    left = [column.startswith("<") for column in columns]
    rows = [[column.removeprefix("<") for column in columns], *lines]
    widths = [max(3, *(len(row[i]) for row in rows)) for i in range(len(columns))]
    rule = [
        "-" * w if is_left else "-" * (w - 1) + ":" for w, is_left in zip(widths, left, strict=True)
    ]

    def line(row: Sequence[str]) -> str:
        cells = zip(row, widths, left, strict=True)
        padded = (c.ljust(w) if is_left else c.rjust(w) for c, w, is_left in cells)
        return f"| {' | '.join(padded)} |"

    return "\n".join(line(row) for row in (rows[0], rule, *rows[1:]))


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


def training(rows: list[Row]) -> Table:
    """Steps per second, encoder and head apart."""
    lines = [
        [
            f"{row['model']}, {row['mode']}, {row['batch']}",
            row["head"],
            f"{row['steps_per_second']:.2f}",
            seconds_text(row["encoder_seconds"]),
            seconds_text(row["head_seconds"]),
            bytes_text(row["step_peak_growth_bytes"]),
            bytes_text(row["head_peak_growth_bytes"]),
        ]
        for row in rows
    ]
    columns = ["<model, mode, batch", "<head", "steps/s", "encoder alone", "head alone"]
    return [*columns, "memory of a step", "of the head alone"], lines


def steps(rows: list[Row]) -> Table:
    """A line per option of a step: its time and memory, and its parts'."""
    before = rows[0]["step_seconds"]
    lines = [
        [
            f"{row['model']}, {row['mode']}, {row['batch']}",
            row["option"],
            f"{seconds_text(row['step_seconds'])} ({times_text(before / row['step_seconds'])})",
            *(seconds_text(row[f"{part}_seconds"]) for part in ("encoder", "head", "update")),
            bytes_text(row["step_peak_growth_bytes"]),
        ]
        for row in rows
    ]
    columns = ["<model, mode, batch", "<option", "step", "encoder", "head", "update"]
    return [*columns, "memory of a step"], lines


def video(rows: list[Row]) -> Table:
    """Frames per second of each reader that is there."""
    lines = [
        [
            row["task"],
            f"{row['reader']} {row['version']}",
            f"{row['frames_per_second']:.0f}",
            f"{row['files_per_second']:.1f}",
        ]
        for row in rows
        if row["status"] == OK
    ]
    return ["<task", "<reader", "frames/s", "files/s"], lines


def cached(rows: list[Row]) -> Table:
    """A line per model and source of frames: items per second, and the data's part of a step."""
    lines = [
        [
            f"{row['model']}, {row['image_size']} pixels, batch {row['batch']}",
            row["source"],
            f"{row['items_per_second']:.1f} ({times_text(row['times_mp4'])})",
            f"{100 * row['data_share']:.0f} %",
            f"{100 * row['waiting_share']:.0f} %",
        ]
        for row in rows
    ]
    return ["<model", "<frames from", "items/s", "data, one process", "waiting for data"], lines


def retrieval(rows: list[Row]) -> Table:
    """Texts × videos scored, the best kept or all ranked; the published formulas from a slice."""
    lines = []
    for row in rows:
        published = seconds_text(row["published_seconds_extrapolated"])
        # Without k: captions, all ranked, by the processor's time.
        task = "all ranked both ways" if row["k"] is None else f"best {row['k']}"
        size = f"{row['texts']:,} × {row['videos']:,}, {task}"
        cells = [seconds_text(row["seconds"]), rate_text(row["pairs_per_second"])]
        cells += [f"{published} ({times_text(row['times_faster'])})"]
        cells += [bytes_text(row["peak_growth_bytes"]), error_text(row["relative_error"])]
        lines.append([size, row["backend"], *cells])
    columns = ["<texts × videos", "<backend", "time", "pairs/s", "published, from a slice"]
    return [*columns, "memory", "error"], lines


def queries(rows: list[Row]) -> Table:
    """A line per form in which the videos lie there, a column per number of texts."""
    counts = sorted({row["texts"] for row in rows})
    base = {row["texts"]: row["seconds"] for row in rows if row["form"] == "published"}
    lines = []
    for form in dict.fromkeys(row["form"] for row in rows):
        own = {row["texts"]: row for row in rows if row["form"] == form}
        first = own[counts[0]]
        cells = []
        for count in counts:
            seconds = own[count]["seconds"]
            faster = "" if form == "published" else f" ({times_text(base[count] / seconds)})"
            cells.append(seconds_text(seconds) + faster)
        encoding = first.get("encoding_seconds")
        cells += ["–" if encoding is None else seconds_text(encoding), bytes_text(first["bytes"])]
        lines.append([form, *cells, error_text(first["relative_error"])])
    named = [f"{count} text{'s' if count > 1 else ''}" for count in counts]
    return ["<videos", *named, "encoding", "size", "error"], lines


def search_recall(rows: list[Row]) -> Table:
    """A line per index, a column per number of candidates."""
    found = [row for row in rows if row["task"] == "recall"]
    counts = sorted({row["candidates"] for row in found})
    lines = []
    for index in dict.fromkeys(row["index"] for row in found):
        own = {row["candidates"]: row for row in found if row["index"] == index}
        first = own[counts[0]]
        shares = [f"{100 * own[count]['recall']:.1f} %" for count in counts]
        lines.append([index, f"{first['segments']:,}", str(first["queries"]), *shares])
    return ["<index", "segments", "queries", *(f"K = {count}" for count in counts)], lines


def search_queries(rows: list[Row]) -> Table:
    """A line per number of segments."""
    lines = []
    for row in rows:
        if row["task"] != "query":
            continue
        exact = row.get("exact_seconds")
        lines.append(
            [
                f"{row['segments']:,}",
                *(
                    seconds_text(row[f"{name}_seconds"])
                    for name in ("open", "first_query", "first_stage", "query")
                ),
                "–" if exact is None else seconds_text(exact),
                *(bytes_text(row[f"{name}_bytes"]) for name in ("own", "mapped", "index")),
            ]
        )
    steps = ["open", "first query", "first stage", "query", "all exact"]
    return ["segments", *steps, "memory", "mapped", "on disk"], lines


def search_sizes(rows: list[Row]) -> Table:
    """A line per power of ten; what was not measured is in proportion to the largest that was."""
    measured = {row["segments"]: row for row in rows if row["task"] == "query"}
    largest = measured[max(measured)]
    of_segment = largest["index_bytes"] / largest["segments"]
    vector = 4 * largest["dim"]
    lines = []
    for power in range(4, 9):
        segments = 10**power
        row = measured.get(segments)
        about = "" if row else "≈ "
        seconds = largest["first_stage_seconds"] * segments / largest["segments"]
        hours = segments * 8 / 3600
        lines.append(
            [
                f"{segments:,}",
                f"{hours:,.0f}",
                bytes_text(segments * vector),
                about + bytes_text(row["index_bytes"] if row else segments * of_segment),
                about + seconds_text(row["first_stage_seconds"] if row else seconds),
            ]
        )
    return ["segments", "hours of video", "vectors", "index", "first stage, one core"], lines


def search_indexing(rows: list[Row]) -> Table:
    """A line per model."""
    lines = [
        [
            row["model"],
            str(row["dim"]),
            seconds_text(row["processor_seconds_per_hour"]),
            f"{3600 / row['processor_seconds_per_hour']:.1f}",
            f"{row['segments_per_hour']:.0f}",
            bytes_text(row["bytes_per_hour"]),
        ]
        for row in rows
        if row["task"] == "indexing"
    ]
    per_hour = ["core time", "hours a core and hour", "segments", "on disk"]
    return ["<an hour of video", "D", *per_hour], lines


def serve(rows: list[Row]) -> Table:
    """A line per kind of request: what was answered, and how long it took."""
    lines = [
        [
            row["request"],
            f"{row['count']:,}",
            str(row["errors"]),
            *(seconds_text(row[f"{name}_seconds"]) for name in ("median", "p95", "longest")),
        ]
        for row in rows
    ]
    return ["<request", "answered", "errors", "median", "95 %", "longest"], lines


def products(rows: list[Row]) -> Table:
    """A line per product: GFLOP/s and relative error of PyTorch's own and of oneDNN's."""
    columns = ["<product", "rows × features × outputs", "PyTorch's own", "oneDNN's"]

    def cell(row: Row, name: str) -> str:
        rate = row.get(f"{name}_gflops")
        if rate is None:
            return "–"
        return f"{_three_digits(rate)} GFLOP/s, {error_text(row[f'{name}_error'])}"

    lines = [
        [row["task"], " × ".join(map(str, row["shape"])), cell(row, "torch"), cell(row, "onednn")]
        for row in rows
    ]
    return columns, lines


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


def modes(rows: list[Row]) -> Table:
    """R@1 in per cent, mean ± standard deviation over seeds: a line per variant."""
    lines = []
    for variant in dict.fromkeys(row["variant"] for row in rows):
        own = [row for row in rows if row["variant"] == variant]
        cells = []
        for direction in ("text_to_video", "video_to_text"):
            cells.append(_mean_and_spread([row[direction]["recall_at_1"] for row in own]))
        lines.append([variant, *cells, str(len(own))])
    return ["<variant", "text to video", "video to text", "seeds"], lines


def starts(rows: list[Row]) -> Table:
    """Text-to-video R@1 in per cent by epoch, mean ± standard deviation over seeds."""
    last = len(rows[0]["text_to_video"]) - 1
    epochs = [epoch for epoch in (0, 1, 2, 5) if epoch < last] + [last]
    lines = []
    for variant in dict.fromkeys(row["variant"] for row in rows):
        own = [row["text_to_video"] for row in rows if row["variant"] == variant]
        cells = [_mean_and_spread([curve[epoch] for curve in own]) for epoch in epochs]
        lines.append([variant, *cells, str(len(own))])
    return ["<features, start", *(f"epoch {epoch}" for epoch in epochs), "seeds"], lines


def noise(rows: list[Row]) -> Table:
    """R@1 in per cent, text to video and video to text, mean ± standard deviation over seeds: a
    line per variant, a column per noise."""
    noises = list(dict.fromkeys(row["noise"] for row in rows))
    lines = []
    for variant in dict.fromkeys(row["variant"] for row in rows):
        cells, counts = [], []
        for each in noises:
            own = [row for row in rows if (row["variant"], row["noise"]) == (variant, each)]
            counts += [len(own)] if own else []
            recalls = [
                [row[direction]["recall_at_1"] for row in own]
                for direction in ("text_to_video", "video_to_text")
            ]
            cells.append(", ".join(map(_mean_and_spread, recalls)) if own else "–")
        lines.append([variant, *cells, "–".join(map(str, sorted({min(counts), max(counts)})))])
    return ["<variant", *noises, "seeds"], lines


def _mean_and_spread(values: list[float]) -> str:
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"


def distributed(rows: list[Row]) -> Table:
    """A line per loss and number of processes; time beside that of one process."""
    alone = {row["loss"]: row["processor_seconds"] for row in rows if row["processes"] == 1}
    lines = []
    for row in rows:
        one = alone.get(row["loss"])
        lines.append(
            [
                row["loss"],
                str(row["processes"]),
                f"{row['pairs']:,}",
                bytes_text(row["sent_bytes"]),
                bytes_text(row["peak_growth_bytes"]),
                "–" if one is None else f"{row['processor_seconds'] / one:.2f}",
            ]
        )
    lines.sort(key=lambda line: [*alone].index(line[0]) if line[0] in alone else 0)
    return ["<loss", "processes", "pairs", "sent", "memory", "processor time"], lines


def gathering(rows: list[Row]) -> Table:
    """A line per way: factors on the gradients, and how far their directions are off."""
    names = ("encoder", "psi", "logit scale")

    def cell(found: Row) -> str:
        direction = "" if found["cosine"] > 1 - 1e-9 else f" (cosine {found['cosine']:.2f})"
        return f"{found['factor']:.2f} ×{direction}"

    lines = [[row["way"], str(row["processes"]), *(cell(row[n]) for n in names)] for row in rows]
    return ["<features, loss", "processes", "<encoder", "<ψ", "<logit scale"], lines


def chunks(rows: list[Row]) -> Table:
    """A line per batch and chunk: memory of a step, how it was found."""
    lines = [
        [
            f"{row['batch']:,}",
            "all" if row["chunk"] == 0 else str(row["chunk"]),
            str(row["frames"]),
            bytes_text(row["peak_growth_bytes"]),
            row["method"],
        ]
        for row in rows
    ]
    return ["videos", "in a chunk", "frames", "memory of a step", "<how"], lines


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


def case_of(row: Row) -> Case:
    """The case that a row belongs to; older files name no ψ."""
    return Case(**{name: row[name] for name in Case.__dataclass_fields__ if name in row})


def series_of(rows: list[Row]) -> dict[str, list[Row]]:
    """Rows by title of their series, in order of appearance."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(case_of(row).title, []).append(row)
    return groups


def seconds_text(seconds: float) -> str:
    """Three significant digits: ``1.23 s``, ``45.6 ms``, ``7.89 µs``."""
    for factor, unit in ((1.0, "s"), (1e3, "ms")):
        if seconds * factor >= 1:
            return f"{_three_digits(seconds * factor)} {unit}"
    return f"{_three_digits(seconds * 1e6)} µs"


def bytes_text(count: float | None) -> str:
    """``1.50 GiB``, ``12.3 MiB``."""
    if count is None:
        return "unknown"
    if count >= 2**30:
        return f"{_three_digits(count / 2**30)} GiB"
    return f"{_three_digits(count / 2**20)} MiB"


def rate_text(per_second: float) -> str:
    """``1.23 M``, ``456 k``."""
    for factor, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if per_second >= factor:
            return f"{_three_digits(per_second / factor)}{unit}"
    return _three_digits(per_second)


def times_text(factor: float) -> str:
    """``12.3 ×``."""
    return f"{_three_digits(factor)} ×"


def error_text(error: float | None) -> str:
    """One digit: ``3e-07``; nothing where there is none."""
    return "" if error is None else f"{error:.0e}"


def _three_digits(value: float) -> str:
    decimals = 0 if value >= 99.95 else 1 if value >= 9.995 else 2
    return f"{value:.{decimals}f}"


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
