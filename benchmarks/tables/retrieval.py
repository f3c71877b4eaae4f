"""Tables of retrieval, search and serving."""

from __future__ import annotations

from benchmarks.rows import Row
from benchmarks.tables.text import (
    Table,
    bytes_text,
    error_text,
    rate_text,
    seconds_text,
    times_text,
)


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
