"""What a process that decodes does with a file: cuts it, and writes the crops that are encoded."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from garevla.data import pyav_reader
from garevla.data._optional import require
from garevla.data.containers import check_elements, inspect_container
from garevla.data.frame_sampling import Sampling
from garevla.data.good_files import signature
from garevla.data.resizing import Resizing
from garevla.data.video_errors import VideoError
from garevla.search.cutting import Cutting, frame_times, sampled_frames

# Pixels that a thumbnail has at most.
_THUMBNAIL = (256, 160)
_THUMBNAIL_QUALITY = 80
_HASHED_AT_ONCE = 1 << 20


def decode(path: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Decode a file from its first to its last frame.

    Args:
        path: the file.
        settings: ``cutting``, ``sampling`` and ``resizing``; ``folder`` for what is written.

    Returns:
        ``reason``: why the file cannot be used, or None; then also its ``seconds`` and ``segments``
        (begin, end, positions of the crops and place of a JPEG), and the files that hold them:
        ``crops``, uint8 (n, 3, H, W), and ``thumbnails``. Always ``digest``, the SHA-256 of the
        content, and ``signature``, as before it was read.
    """
    before = signature(Path(path))
    answer: dict[str, Any] = {"signature": before, "digest": ""}
    base = Path(
        settings["folder"], f"{os.getpid()}-{hashlib.sha256(os.fsencode(path)).hexdigest()}"
    )
    crops, thumbnails = base.with_suffix(".crops"), base.with_suffix(".jpegs")
    try:
        answer["digest"] = content_digest(Path(path))
        with _removed_on_error(crops, thumbnails):
            with crops.open("wb") as crop_file, thumbnails.open("wb") as thumbnail_file:
                answer |= _decode(Path(path), settings, crop_file, thumbnail_file)
            if signature(Path(path)) != before:
                raise VideoError("it has changed while it was read")
    except VideoError as error:
        return answer | {"reason": error.reason}
    return answer | {"reason": None, "crops": str(crops), "thumbnails": str(thumbnails)}


def content_digest(path: Path) -> str:
    """SHA-256 of a file; empty where it cannot be read."""
    found = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(_HASHED_AT_ONCE):
                found.update(chunk)
    except (OSError, ValueError):
        return ""
    return found.hexdigest()


def _decode(
    path: Path, settings: dict[str, Any], crop_file: BinaryIO, thumbnail_file: BinaryIO
) -> dict[str, Any]:
    sampling = Sampling.from_settings(settings["sampling"])
    container = inspect_container(path)
    packets = pyav_reader.list_packets(path)
    packets.check_length(path, container)
    check_elements(path, container)
    seconds = 0.0
    ranges: list[tuple[float, float]] = []
    chosen: list[np.ndarray] = []
    wanted_thumbnails: set[int] = set()
    resizing = Resizing(**settings["resizing"])
    crop, size = _crop(resizing), resizing.image_size

    def choose(number: int) -> np.ndarray:
        nonlocal seconds, ranges, chosen, wanted_thumbnails
        times, seconds = frame_times(packets, number)
        ranges = Cutting(**settings["cutting"]).ranges(path, seconds)
        chosen = sampled_frames(times, ranges, packets.frame_rate(), sampling)
        wanted_thumbnails = {int(frames[len(frames) // 2]) for frames in chosen}
        return np.unique(np.concatenate(chosen))

    def keep(index: int, image: np.ndarray) -> tuple[int, int, int]:
        position = crop_file.tell() // (3 * size * size)
        crop_file.write(crop(image[None]).numpy().tobytes())
        begin = thumbnail_file.tell()
        if index in wanted_thumbnails:
            thumbnail_file.write(_jpeg(image))
        return position, begin, thumbnail_file.tell() - begin

    kept, _ = pyav_reader.decode_each(path, packets, choose, keep)
    return {
        "seconds": seconds,
        "segments": [
            [begin, end, [kept[index][0] for index in frames.tolist()], *kept[middle][1:]]
            for (begin, end), frames in zip(ranges, chosen, strict=True)
            for middle in [int(frames[len(frames) // 2])]
        ],
    }


@functools.cache
def _crop(resizing: Resizing) -> Any:
    # Here, in a process of its own, torch is needed for the crop alone.
    import torch

    from garevla.data.dataset import FrameCrop

    torch.set_num_threads(1)
    return FrameCrop(resizing)


def _jpeg(image: np.ndarray) -> bytes:
    picture = require("PIL.Image").fromarray(image)
    picture.thumbnail(_THUMBNAIL)
    content = io.BytesIO()
    picture.save(content, "JPEG", quality=_THUMBNAIL_QUALITY)
    return content.getvalue()


@contextlib.contextmanager
def _removed_on_error(*paths: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:
        for path in paths:
            path.unlink(missing_ok=True)
        raise
