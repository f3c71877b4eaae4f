from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from garevla.data.synthetic import SyntheticConfig, generate_dataset

av = pytest.importorskip("av")
pytest.importorskip("decord")

WriteVideo = Callable[..., Path]


def _numbered_frame(index: int, height: int, width: int) -> np.ndarray:
    """A frame that tells its index (below 256) after lossy coding: two halves, 16 grays each."""
    frame = np.empty((height, width, 3), dtype=np.uint8)
    frame[:, : width // 2] = index // 16 * 16 + 8
    frame[:, width // 2 :] = index % 16 * 16 + 8
    return frame


@pytest.fixture(scope="session")
def frame_numbers() -> Callable[[np.ndarray], list[int]]:
    """Read the indices back from frames (n, height, width, 3)."""

    def read(frames: np.ndarray) -> list[int]:
        quarter = frames.shape[2] // 4
        left, right = (
            frames[:, 2:-2, at - 3 : at + 3].mean((1, 2, 3)) for at in (quarter, -quarter)
        )
        return [int(a) // 16 * 16 + int(b) // 16 for a, b in zip(left, right, strict=True)]

    return read


@pytest.fixture(scope="session")
def write_video() -> WriteVideo:
    """Write a video of numbered frames; ``data`` bytes of noise make it large enough to cut."""

    def write(
        path: Path,
        num_frames: int = 64,
        *,
        rate: float = 8,
        size: tuple[int, int] = (48, 64),
        codec: str = "libx264",
        key_frame_every: int = 16,
        faststart: bool = False,
        noise: int = 0,
        pix_fmt: str = "yuv420p",
        **options: str,
    ) -> Path:
        generator = np.random.default_rng(0)
        container_options = {"movflags": "+faststart"} if faststart else {}
        with av.open(str(path), "w", options=container_options) as container:
            stream = container.add_stream(codec, rate=Fraction(rate).limit_denominator(1001))
            stream.height, stream.width = size
            stream.pix_fmt = pix_fmt
            stream.options = {"g": str(key_frame_every), **options}
            if codec == "libx264":
                stream.options = {"crf": "10", "preset": "veryfast", **stream.options}
            else:
                stream.bit_rate = 2_000_000
            for index in range(num_frames):
                frame = _numbered_frame(index, *size).astype(int)
                frame += generator.integers(-noise, noise + 1, frame.shape)
                image = np.clip(frame, 0, 255).astype(np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            container.mux(stream.encode())
        return path

    return write


@pytest.fixture(scope="session")
def cut() -> Callable[..., Path]:
    """Keep a part of a file's bytes."""

    def cut_file(path: Path, share: float) -> Path:
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * share)])
        return path

    return cut_file


@pytest.fixture(scope="session")
def small_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generated data set: 10 training videos of 2 or 3 captions, 6 test videos."""
    root = tmp_path_factory.mktemp("small_dataset")
    generate_dataset(root, num_train=10, num_test=6, seed=3, config=SyntheticConfig(frame_size=32))
    return root
