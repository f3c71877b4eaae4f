"""What ``garevla serve`` answers to many browsers at once, and how long each waits.

    python -m benchmarks.serve --json benchmarks/results/amd-epyc-avx2-2core/serve.json

Every client searches for a text that none has searched for, asks for the first thumbnails that were
found and for the beginning of a video, over and over. All runs on one machine: server, clients,
and whatever else it does then. Of an index of generated videos with the tiny model; ``--library``
takes another one.
"""

from __future__ import annotations

import argparse
import http.client
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import tables
from benchmarks.report import write_results
from garevla.data.synthetic import VIDEO_DIR, generate_dataset
from garevla.search import IndexConfig, index_videos

Row = dict[str, Any]

THUMBNAILS = 4
_BEGINNING = 1 << 16
_WORDS = ("red", "blue", "cross", "ring", "moves left", "jumps", "a dog", "grows", "two", "then")


def make_library(folder: Path, videos: int) -> Path:
    """An index of generated videos, a second each segment."""
    generate_dataset(folder, num_train=videos - 1, num_test=1)
    output = folder / "library.garevla"
    config = IndexConfig(
        video_dir=folder / VIDEO_DIR,
        output=output,
        model="tiny",
        segment_seconds=1.0,
        num_workers=1,
        device="cpu",
    )
    index_videos(config, progress=False)
    return output


@contextmanager
def served(library: Path) -> Iterator[tuple[str, int]]:
    """Run the server; yields host and port."""
    command = [sys.executable, "-m", "garevla", "serve", str(library), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            found = next(filter(None, (re.search(r"://(.*):(\d+)/", x) for x in process.stdout)))
            yield found[1], int(found[2])
        finally:
            process.terminate()


class Client(threading.Thread):
    """A browser that goes on until a time.

    Attributes:
        seconds: of every request that was answered, by its kind.
        errors: of those that were not, and of other answers than were to be expected.
    """

    def __init__(self, address: tuple[str, int], name: str, until: float) -> None:
        super().__init__()
        self.connection = http.client.HTTPConnection(*address, timeout=120)
        self.client, self.until = name, until
        self.seconds: dict[str, list[float]] = {"search": [], "thumbnail": [], "video": []}
        self.errors: dict[str, int] = dict.fromkeys(self.seconds, 0)

    def run(self) -> None:
        for number in itertools.count():
            if time.monotonic() >= self.until:
                return
            words = " ".join(_WORDS[number // 10**place % 10] for place in range(3))
            body = json.dumps({"text": f"{words} {self.client}"})
            found = self.ask("search", 200, "/api/search", body)
            items = json.loads(found)["results"] if found else []
            for item in items[:THUMBNAILS]:
                self.ask("thumbnail", 200, item["thumbnail"])
            for item in items[:1]:
                self.ask("video", 206, item["video"], range=f"bytes=0-{_BEGINNING - 1}")

    def ask(
        self, kind: str, status: int, path: str, body: str | None = None, **headers: str
    ) -> bytes | None:
        started = time.perf_counter()
        headers["content-type"] = "application/json"
        try:
            self.connection.request("GET" if body is None else "POST", path, body, headers)
            answer = self.connection.getresponse()
            content = answer.read()
        except (OSError, http.client.HTTPException):
            self.connection.close()
            answer = None
        if answer is None or answer.status != status:
            self.errors[kind] += 1
            return None
        self.seconds[kind].append(time.perf_counter() - started)
        return content


def rows_of(library: Path, num_clients: int, seconds: float) -> list[Row]:
    """A row for each kind of request."""
    with served(library) as address:
        # The first search compares the index with its checksums.
        warm = Client(address, "first", 0.0)
        warm.ask("search", 200, "/api/search", json.dumps({"text": "first"}))
        until = time.monotonic() + seconds
        clients = [Client(address, str(number), until) for number in range(num_clients)]
        for client in clients:
            client.start()
        for client in clients:
            client.join()
    rows = []
    for kind in clients[0].seconds:
        taken = np.array([each for client in clients for each in client.seconds[kind]])
        rows.append(
            {
                "request": kind,
                "clients": num_clients,
                "during_seconds": seconds,
                "count": len(taken),
                "errors": sum(client.errors[kind] for client in clients),
                "median_seconds": float(np.median(taken)),
                "p95_seconds": float(np.quantile(taken, 0.95)),
                "longest_seconds": float(taken.max()),
            }
        )
    return rows


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--library", type=Path, help="an index; one is made by default")
    parser.add_argument("--videos", type=int, default=40, help="of the index that is made")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--json", type=Path, help="write the results here")
    args = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        library = args.library or make_library(Path(folder), args.videos)
        rows = rows_of(library, args.clients, args.seconds)
    # What else the machine did: waiting for it is in the times.
    load = os.getloadavg()[0]
    for row in rows:
        row["load_average"] = load
    print(tables.markdown(*tables.serve(rows)))
    if args.json:
        write_results(args.json, "benchmarks.serve", rows)


if __name__ == "__main__":
    main()
