"""Clips made for tests: numbered frames in any codec and container that PyAV writes."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

# Else this encoder writes a page about itself for each clip.
os.environ.setdefault("SVT_LOG", "1")


def numbered_frame(index: int, height: int, width: int) -> np.ndarray:
    """A frame that tells its index (below 256) after lossy coding: two halves, 16 grays each."""
    frame = np.empty((height, width, 3), dtype=np.uint8)
    frame[:, : width // 2] = index // 16 * 16 + 8
    frame[:, width // 2 :] = index % 16 * 16 + 8
    return frame


def frame_numbers(frames: np.ndarray) -> list[int]:
    """Read the indices back from frames (n, height, width, 3)."""
    quarter = frames.shape[2] // 4
    left, right = (frames[:, 2:-2, at - 3 : at + 3].mean((1, 2, 3)) for at in (quarter, -quarter))
    return [int(a) // 16 * 16 + int(b) // 16 for a, b in zip(left, right, strict=True)]


def write_clip(
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
    times: Sequence[int] | None = None,
    sound_seconds: float = 0,
    muxing: dict[str, str] | None = None,
    **options: str,
) -> Path:
    """Write a video of numbered frames.

    Args:
        noise: bytes of noise, which make it large enough to cut.
        times: when each frame is shown, in milliseconds; by default at ``rate``.
        sound_seconds: length of a sound beside it.
        muxing: options of the container.
        options: of the codec.
    """
    generator = np.random.default_rng(0)
    container_options = {"movflags": "+faststart"} if faststart else dict(muxing or {})
    with av.open(str(path), "w", options=container_options) as container:
        stream = container.add_stream(codec, rate=Fraction(rate).limit_denominator(1001))
        stream.height, stream.width = size
        stream.pix_fmt = pix_fmt
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        stream.options = {"g": str(key_frame_every), **_DEFAULTS.get(codec, {}), **options}
        if codec == "libx265" and num_frames < 3:
            # Its B frames leave the decode times of so short a clip unset.
            stream.options = {**stream.options, "x265-params": f"{_X265}:bframes=0"}
        if codec not in _DEFAULTS:
            stream.bit_rate = 2_000_000
        sound = container.add_stream("aac", rate=16000) if sound_seconds else None
        for index in range(num_frames):
            frame = numbered_frame(index, *size).astype(int)
            frame += generator.integers(-noise, noise + 1, frame.shape)
            image = av.VideoFrame.from_ndarray(np.clip(frame, 0, 255).astype(np.uint8), "rgb24")
            if times is not None:
                image.pts, image.time_base = times[index], Fraction(1, 1000)
            container.mux(stream.encode(image))
        container.mux(stream.encode())
        if sound is not None:
            _write_silence(container, sound, sound_seconds)
    return path


def copied(
    source: Path,
    path: Path,
    keep: Callable[[int], object] = lambda index: True,
    later: int = 0,
    degrees: int = 0,
) -> Path:
    """Copy packets without decoding, as cutting tools do."""
    with av.open(str(source)) as old, av.open(str(path), "w") as new:
        stream = old.streams.video[0]
        copy = new.add_stream_from_template(stream)
        if degrees:
            if not hasattr(copy, "set_display_rotation"):
                pytest.skip("this PyAV writes no rotation")
            copy.set_display_rotation(degrees)
        packets = [packet for packet in old.demux(stream) if packet.size]
        step = packets[0].duration
        for index, packet in enumerate(packets):
            if keep(index):
                packet.stream = copy
                packet.pts += later * step
                packet.dts += later * step
                new.mux(packet)
    return path


_X265 = "log-level=none:crf=10:frame-threads=1:pools=none"
_DEFAULTS = {
    "libx264": {"crf": "10", "preset": "veryfast"},
    "libx265": {"preset": "ultrafast", "x265-params": _X265},
    "libsvtav1": {"preset": "12", "crf": "20"},
    "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8", "crf": "10"},
    "gif": {},
    "ffv1": {},
    "prores_ks": {},
}


def _write_silence(container: Any, stream: Any, seconds: float) -> None:
    samples = np.zeros((1, int(16000 * seconds)), dtype=np.float32)
    frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
    frame.rate, frame.pts = 16000, 0
    container.mux(stream.encode(frame))
    container.mux(stream.encode())


_TIMES = np.random.default_rng(1).integers(20, 300, 256).cumsum().tolist()

# Sound files of all kinds: name -> arguments of write_clip.
SOUND: dict[str, dict[str, Any]] = {
    "plain.mp4": {},
    "faststart.m4v": {"faststart": True},
    "changing_rate.mp4": {"times": _TIMES},
    "changing_rate.mkv": {"times": _TIMES},
    "slow.mkv": {"rate": 0.2},
    "vp8.webm": {"codec": "libvpx"},
    "changing_rate.webm": {"codec": "libvpx", "times": _TIMES},
    "vp9.webm": {"codec": "libvpx-vp9"},
    "vp9.mp4": {"codec": "libvpx-vp9"},
    "av1.mp4": {"codec": "libsvtav1", "size": (64, 64)},
    "av1.mkv": {"codec": "libsvtav1", "size": (64, 64)},
    "av1.webm": {"codec": "libsvtav1", "size": (64, 64)},
    "hevc.mp4": {"codec": "libx265"},
    "hevc.mkv": {"codec": "libx265"},
    "prores.mov": {"codec": "prores_ks", "pix_fmt": "yuv422p10le"},
    "ten_bits.mp4": {"pix_fmt": "yuv420p10le"},
    "ten_bits_hevc.mkv": {"codec": "libx265", "pix_fmt": "yuv420p10le"},
    "odd.mp4": {"size": (51, 67), "pix_fmt": "yuv444p"},
    "odd.mkv": {"size": (33, 35), "pix_fmt": "yuv444p"},
    "odd.avi": {"size": (51, 67), "codec": "ffv1", "pix_fmt": "yuv444p"},
    "fragmented.mp4": {"muxing": {"movflags": "frag_keyframe+empty_moov"}},
    "fragments_of_frames.mp4": {"muxing": {"movflags": "frag_every_frame+empty_moov"}},
    "stream.mkv": {"muxing": {"live": "1"}},
    "stream.webm": {"codec": "libvpx", "muxing": {"live": "1"}},
    "b_frames.avi": {"bf": "2"},
    "b_frames_mpeg4.avi": {"codec": "mpeg4", "bf": "2"},
    "mpeg4.avi": {"codec": "mpeg4"},
    "mjpeg.avi": {"codec": "mjpeg", "pix_fmt": "yuvj420p"},
    "lossless.mkv": {"codec": "ffv1"},
    "phone.3gp": {"codec": "mpeg4", "size": (144, 176)},
    "sound_longer.mp4": {"sound_seconds": 12},
    "sound_longer.mkv": {"sound_seconds": 12},
    "sound_longer.avi": {"codec": "mpeg4", "sound_seconds": 12},
    "sound_shorter.mkv": {"sound_seconds": 2},
    "intra.mp4": {"key_frame_every": 1},
    "one_key_frame.mkv": {"key_frame_every": 999},
    "windows.wmv": {"codec": "wmv2"},
    "flash.flv": {"codec": "flv"},
    "h264.flv": {},
    "program.mpg": {"codec": "mpeg2video", "rate": 25},
    "transport.ts": {},
    "camera.mts": {"rate": 25, "noise": 4},
    "image.gif": {"codec": "gif", "pix_fmt": "gray", "rate": 10},
}
