"""Indexes of made-up features, without a video or a model."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from garevla.search.format import VideoRecord
from garevla.search.writer import SegmentData, Writer, create

DIM, MOST_FRAMES, QUERIES = 96, 3, 4


def settings(**changed: Any) -> dict[str, Any]:
    return {
        "dim": DIM,
        "frames_dtype": "<f2",
        "bank": [f"query {number}" for number in range(QUERIES)],
        "video_dir": "/videos",
        "model": {"model": "tiny", "pretrained": None, "digest": ""},
        "sampling": {"max_frames": MOST_FRAMES, "sampling": "grid", "frames_per_second": 2.0},
        "cutting": {"segments": "fixed", "seconds": 2.0, "overlap": 0.5},
        **changed,
    }


def segments(generator: np.random.Generator, count: int) -> list[SegmentData]:
    """Segments that touch, of 1 to 3 frames; their vectors are random too."""
    found = []
    for number in range(count):
        frames = generator.standard_normal((generator.integers(1, MOST_FRAMES + 1), DIM))
        vector = generator.standard_normal(DIM).astype(np.float32)
        vector /= np.linalg.norm(vector)
        jpeg = generator.bytes(20)
        found.append(SegmentData(2.0 * number, 2.0 * number + 2, frames, vector, jpeg))
    return found


def add_video(
    writer: Writer, name: str, generator: np.random.Generator, count: int = 3
) -> list[SegmentData]:
    made = segments(generator, count)
    record = VideoRecord(0, os.fsencode(name), 7, 8, f"digest {len(name)}", 2.0 * count)
    writer.add(record, made, generator.standard_normal(QUERIES))
    return made


def make(folder: Path, videos: int = 5, seed: int = 0, **changed: Any) -> dict[str, Any]:
    """An index of videos ``0`` … with 1 to 4 segments each; returns these by name."""
    generator = np.random.default_rng(seed)
    folder.mkdir()
    create(folder, settings(**changed))
    made = {}
    with Writer(folder) as writer:
        for number in range(videos):
            made[str(number)] = add_video(writer, str(number), generator, 1 + number % 4)
        writer.commit()
    return made
