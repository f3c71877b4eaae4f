"""Indexes to serve: real clips, made-up features."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from garevla.search import Library
from garevla.search.format import VideoRecord
from garevla.search.writer import Writer, create
from garevla.serve.settings import ServeConfig
from tests.data.clips import write_clip
from tests.search import made

# More than two pages of the page's.
VIDEOS = 14
SEGMENTS = 3


@dataclass
class Served:
    """An index of clips of 6 seconds, whose features are made up."""

    folder: Path
    videos: Path

    def open(self) -> Library:
        return Library.open(self.folder, device="cpu")

    def config(self) -> ServeConfig:
        return ServeConfig(library=self.folder, device="cpu")

    def add(self, name: bytes, seed: int) -> None:
        """Index a file of the folder of videos under 3 segments."""
        generator = np.random.default_rng(seed)
        segments = [
            each._replace(thumbnail=jpeg(seed)) for each in made.segments(generator, SEGMENTS)
        ]
        with Writer(self.folder) as writer:
            record = VideoRecord(0, name, 1, 1, "", 6.0)
            writer.add(record, segments, generator.uniform(0, 0.2, made.QUERIES))
            writer.commit()


def jpeg(seed: int) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (160, 90), (40 + 12 * seed % 200, 90, 150)).save(content, "JPEG")
    return content.getvalue()


def make(folder: Path, videos: int = VIDEOS) -> Served:
    served = Served(folder / "library.garevla", folder / "videos")
    served.folder.mkdir(parents=True)
    served.videos.mkdir()
    create(served.folder, made.settings(video_dir=str(served.videos)))
    for number in range(videos):
        name = f"clip {number}.mp4"
        write_clip(served.videos / name, 48, size=(72, 128), faststart=True)
        served.add(os.fsencode(name), number)
    with Writer(served.folder) as writer:
        for name, reason in (("notes.mp4", "it is a text"), ("<b>.mkv", "it ends too early")):
            writer.add_failure(VideoRecord(0, os.fsencode(name), 1, 1, "", reason=reason))
        writer.commit()
    return served
