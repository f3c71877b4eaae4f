"""Frames by PyAV, which decodes every frame of a file and hears of every error on the way.

It reads whatever FFmpeg reads, and is the measure of a file: what passes here is there to its end,
as far as its container tells, and no decoder has met an error in it. A decoder does not meet all:
those of VP8, VP9 and HEVC decode most damaged bytes to some picture.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

import numpy as np

from garevla.data._optional import require
from garevla.data.containers import Container
from garevla.data.frame_sampling import Sampling, frame_indices
from garevla.data.messages import first_line
from garevla.data.video_errors import VideoError

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

Kept = TypeVar("Kept")

# Of a clip's frames or length, how many may lack before it counts as truncated. Headers are a
# little off in good files, too.
_TOLERANCE = 0.05

# Whose packets may hold frames that are never shown.
_CODECS_WITH_HIDDEN_FRAMES = ("vp8", "vp9", "av1")


class Decoded(NamedTuple):
    """The frames of a file.

    Attributes:
        frames: the sampled ones, uint8 (n, height, width, 3), RGB.
        num_frames: how many there are.
    """

    frames: np.ndarray
    num_frames: int


def list_packets(path: Path) -> Packets:
    """Look at the header and the packets of a file, decoding none.

    Raises:
        VideoError: it is not a video, or cannot be read.
        ImportError: PyAV is not installed.
    """
    av = require("av")
    with _errors_of(av, path):
        return _list_packets(av, path)


def decode(path: Path, sampling: Sampling, packets: Packets) -> Decoded:
    """Decode a file from its first to its last frame, keeping the sampled ones.

    Args:
        path: the file.
        sampling: which frames.
        packets: what :func:`list_packets` says of it.

    Raises:
        VideoError: it cannot be decoded without an error.
        ImportError: PyAV is not installed.
    """
    indices = np.empty(0, dtype=np.int64)

    def choose(number: int) -> np.ndarray:
        nonlocal indices
        indices = _indices(path, number, packets, sampling)
        return indices

    kept, number = decode_each(path, packets, choose, lambda index, image: image)
    return Decoded(np.stack([kept[index] for index in indices.tolist()]), number)


def decode_each(
    path: Path,
    packets: Packets,
    choose: Callable[[int], np.ndarray],
    keep: Callable[[int, np.ndarray], Kept],
) -> tuple[dict[int, Kept], int]:
    """Decode a file from its first to its last frame, and keep something of some frames.

    Args:
        path: the file.
        packets: what :func:`list_packets` says of it.
        choose: which frames of so many, as indices in any order.
        keep: of a frame's index and its uint8 (height, width, 3), RGB, what is kept. Where the
            packets have promised another number of frames, it is called anew from the first on.

    Returns:
        What is kept, by index, and how many frames there are.

    Raises:
        VideoError: it cannot be decoded without an error.
        ImportError: PyAV is not installed.
    """
    av = require("av")
    with _errors_of(av, path):
        decoding = _decode(av, path, choose(packets.number), keep)
        decoding.check(path, packets)
        number = decoding.num_frames
        if number != packets.number:
            decoding = _decode(av, path, choose(number), keep)
    return decoding.kept, number


def _indices(path: Path, num_frames: int, packets: Packets, sampling: Sampling) -> np.ndarray:
    try:
        return frame_indices(num_frames, packets.frame_rate(), sampling)
    except ValueError as error:
        raise VideoError.of(path, str(error)) from error


@contextlib.contextmanager
def _errors_of(av: ModuleType, path: Path) -> Iterator[None]:
    """Turn FFmpeg's errors, and what PyAV makes of damaged headers, into a VideoError."""
    try:
        yield
    # Of the latter kind is a time base of zero.
    except (av.FFmpegError, ValueError, ArithmeticError, LookupError, MemoryError) as error:
        raise VideoError.of(path, f"damaged, or not a video: {_brief(error)}") from error


@dataclass
class Packets:
    """What the packets of a file say, before they are decoded.

    Attributes:
        format: FFmpeg's name of the container.
        codec: name of the video stream's codec.
        number: packets with a frame that is shown.
        hidden: packets that an edit list cuts away.
        damaged: packets that are not whole.
        first_is_key: whether the first one can be decoded by itself.
        header_rate: frames per second by the header; None where it says nothing.
        guessed_rate: by FFmpeg's guess.
        header_frames: number of frames by the header; 0 where it says nothing.
        header_seconds: length by the header, likewise.
        end: when the last packet of any stream ends, in seconds.
        times: when each frame is shown, where that is known, in the order of decoding.
        can_be_sought: whether every key frame comes before all frames that are shown after it, so
            that what is decoded from there on are those, each at its time.
    """

    format: str
    codec: str
    header_rate: Fraction | None
    guessed_rate: Fraction | None
    header_frames: int
    header_seconds: float
    number: int = 0
    hidden: int = 0
    damaged: int = 0
    first_is_key: bool = True
    end: float = 0.0
    can_be_sought: bool = True

    def __post_init__(self) -> None:
        self.times: list[float] = []

    def frame_rate(self) -> float:
        """Frames per second."""
        if self.header_rate:
            return float(self.header_rate)
        if len(self.times) > 1 and max(self.times) > min(self.times):
            return (len(self.times) - 1) / (max(self.times) - min(self.times))
        return float(self.guessed_rate or 1)

    def check_length(self, path: Path, container: Container) -> bool:
        """Compare with what the header says; return whether it says enough.

        Raises:
            VideoError: there are fewer frames, or an earlier end.
        """
        if not self.number:
            raise VideoError.of(path, "truncated or damaged: no frame in it")
        if not self.first_is_key:
            raise VideoError.of(path, "does not start with a key frame")
        if self.damaged:
            raise VideoError.of(
                path, f"truncated or damaged: {self.damaged} of {self.number} packets are not whole"
            )
        if container.kind == "mp4" and not container.shows_end:
            found = self.number + self.hidden
            if found < (1 - _TOLERANCE) * self.header_frames:
                raise VideoError.of(
                    path, f"truncated: {found} of {self.header_frames} frames are there"
                )
            return self.header_frames > 0
        if container.kind in ("matroska", "avi"):
            # The last frame of a slide show is as long as the others, of which no header tells.
            gaps = np.diff(np.sort(self.times))
            allowed = max(_TOLERANCE * self.header_seconds, 1.5 * float(gaps.max(initial=0)))
            if self.end < self.header_seconds - allowed:
                raise VideoError.of(
                    path,
                    f"truncated: it ends after {self.end:.1f} of {self.header_seconds:.1f} seconds",
                )
            return container.shows_end or self.header_seconds > 0
        return container.shows_end


def _list_packets(av: ModuleType, path: Path) -> Packets:
    with _open(av, path) as container:
        stream = _video_stream(path, container)
        seconds = _seconds(stream.metadata.get("DURATION", ""))
        if not seconds and stream.duration and stream.time_base:
            seconds = float(stream.duration * stream.time_base)
        if not seconds:
            seconds = (container.duration or 0) / av.time_base
        packets = Packets(
            container.format.name,
            stream.codec_context.name,
            stream.average_rate,
            stream.guessed_rate,
            stream.frames,
            seconds,
        )
        last_key = -math.inf
        frame_seconds = 1 / float(packets.header_rate) if packets.header_rate else 0.0
        # In floating point: a fraction for each packet takes longer than to read it.
        ticks: dict[int, float] = {}
        for packet in container.demux():
            if not packet.size:
                continue
            time = packet.pts if packet.pts is not None else packet.dts
            if time is not None:
                if packet.stream_index not in ticks:
                    ticks[packet.stream_index] = float(packet.time_base or 0)
                tick = ticks[packet.stream_index]
                begins = time * tick
                packets.end = max(packets.end, begins + (packet.duration or 0) * tick)
            if packet.stream_index != stream.index:
                continue
            if not packets.number + packets.hidden:
                packets.first_is_key = packet.is_keyframe
            packets.damaged += packet.is_corrupt
            if packet.is_discard:
                packets.hidden += 1
                packets.can_be_sought = False
                continue
            packets.number += 1
            if packet.pts is None or begins < last_key:
                packets.can_be_sought = False
            elif packet.is_keyframe:
                last_key = begins
            if time is not None:
                packets.times.append(begins)
                packets.end = max(packets.end, begins + frame_seconds)
        return packets


@dataclass
class _Decoding(Generic[Kept]):
    """The frames of a file.

    Attributes:
        kept: what is kept of the frames asked for, by their indices.
        num_frames: all that were decoded.
        num_faulty: those that the decoder made up in part, or would not decode at all.
        first_error: its words.
        interlaced: whether a frame may be two packets.
    """

    kept: dict[int, Kept]
    num_frames: int = 0
    num_faulty: int = 0
    first_error: str | None = None
    interlaced: bool = False

    def check(self, path: Path, packets: Packets) -> None:
        """Check that all was decoded.

        Raises:
            VideoError: it was not.
        """
        if self.num_faulty or not self.num_frames:
            because = f": {self.first_error}" if self.first_error else ""
            raise VideoError.of(
                path,
                f"damaged: {self.num_faulty} of {packets.number} frames cannot be decoded without "
                f"errors{because}",
            )
        may_be_fewer = self.interlaced or packets.codec in _CODECS_WITH_HIDDEN_FRAMES
        if self.num_frames < (1 - _TOLERANCE) * packets.number and not may_be_fewer:
            raise VideoError.of(
                path, f"damaged: only {self.num_frames} of {packets.number} frames can be decoded"
            )


def _decode(
    av: ModuleType, path: Path, indices: np.ndarray, keep: Callable[[int, np.ndarray], Kept]
) -> _Decoding[Kept]:
    wanted = set(indices.tolist())
    decoding: _Decoding[Kept] = _Decoding({})
    size: dict[str, Any] = {}
    with _open(av, path) as container:
        stream = _video_stream(path, container)
        context = stream.codec_context
        # Several threads per file would only compete with the loader's other workers.
        context.thread_count = 1
        # Frames that the decoder knows to be broken, which it would drop in silence.
        context.flags |= av.codec.context.Flags.output_corrupt
        for packet in container.demux(stream):
            try:
                frames = packet.decode()
            except av.FFmpegError as error:
                decoding.num_faulty += 1
                decoding.first_error = decoding.first_error or _brief(error)
                continue
            for frame in frames:
                decoding.num_faulty += frame.is_corrupt
                decoding.interlaced |= frame.interlaced_frame
                if decoding.num_frames in wanted:
                    # A video may change its size; its frames are of the first one's.
                    size = size or {"width": frame.width, "height": frame.height}
                    index = decoding.num_frames
                    decoding.kept[index] = keep(index, _upright(frame, size))
                decoding.num_frames += 1
    return decoding


def _upright(frame: VideoFrame, size: dict[str, Any]) -> np.ndarray:
    """RGB pixels, turned as the file says that the camera was."""
    image = frame.to_ndarray(format="rgb24", **size)
    turns = round(frame.rotation / 90)
    return np.ascontiguousarray(np.rot90(image, turns))


def _open(av: ModuleType, path: Path) -> InputContainer:
    # A file that is a playlist must not reach out.
    options = {"protocol_whitelist": "file"}
    return av.open(str(path), metadata_errors="replace", options=options)


def _video_stream(path: Path, container: InputContainer) -> VideoStream:
    name = container.format.name
    if name.endswith("_pipe") or name in ("image2", "tty"):
        raise VideoError.of(path, f"an image or a text, not a video ({name})")
    if not container.streams.video:
        kinds = sorted({str(stream.type) for stream in container.streams}) or ["nothing"]
        raise VideoError.of(path, f"no video in it, only {' and '.join(kinds)}")
    stream = container.streams.video[0]
    if stream.codec_context is None:
        raise VideoError.of(path, "no decoder for its codec")
    return stream


def _seconds(duration: str) -> float:
    """Seconds in Matroska's ``hours:minutes:seconds``; 0 for anything else."""
    match = re.fullmatch(r"(\d+):(\d+):(\d+(?:\.\d+)?)", duration)
    if match is None:
        return 0.0
    hours, minutes, seconds = map(float, match.groups())
    return 3600 * hours + 60 * minutes + seconds


def _brief(error: Any) -> str:
    """FFmpeg's words without its error number and the file's name."""
    return getattr(error, "strerror", None) or first_line(error)
