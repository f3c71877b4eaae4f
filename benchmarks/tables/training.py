"""Tables of training: steps, their data, several processes, and what was learnt."""

from __future__ import annotations

from benchmarks.rows import OK, Row
from benchmarks.tables.text import Table, bytes_text, mean_and_spread, seconds_text, times_text


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


def modes(rows: list[Row]) -> Table:
    """R@1 in per cent, mean ± standard deviation over seeds: a line per variant."""
    lines = []
    for variant in dict.fromkeys(row["variant"] for row in rows):
        own = [row for row in rows if row["variant"] == variant]
        cells = []
        for direction in ("text_to_video", "video_to_text"):
            cells.append(mean_and_spread([row[direction]["recall_at_1"] for row in own]))
        lines.append([variant, *cells, str(len(own))])
    return ["<variant", "text to video", "video to text", "seeds"], lines


def starts(rows: list[Row]) -> Table:
    """Text-to-video R@1 in per cent by epoch, mean ± standard deviation over seeds."""
    last = len(rows[0]["text_to_video"]) - 1
    epochs = [epoch for epoch in (0, 1, 2, 5) if epoch < last] + [last]
    lines = []
    for variant in dict.fromkeys(row["variant"] for row in rows):
        own = [row["text_to_video"] for row in rows if row["variant"] == variant]
        cells = [mean_and_spread([curve[epoch] for curve in own]) for epoch in epochs]
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
            cells.append(", ".join(map(mean_and_spread, recalls)) if own else "–")
        lines.append([variant, *cells, "–".join(map(str, sorted({min(counts), max(counts)})))])
    return ["<variant", *noises, "seeds"], lines
