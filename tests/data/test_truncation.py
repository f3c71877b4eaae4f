"""Every truncation that takes more than 5 % of a clip's frames is named."""

from __future__ import annotations

from pathlib import Path

import av
import pytest

from garevla.data import Sampling, VideoError, read_frames
from garevla.data.video import check_video
from tests.data.clips import write_clip

CONTAINERS = {
    ".mp4": {},
    ".mkv": {},
    ".webm": {"codec": "libvpx"},
    ".avi": {"codec": "mpeg4"},
}


def packet_ends(path: Path) -> list[int]:
    """Where each frame's bytes end, in the order of the file."""
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        return [packet.pos + packet.size for packet in packets]


@pytest.mark.parametrize("num_frames", [1, 4, 30])
@pytest.mark.parametrize(
    ("suffix", "faststart"), [(".mp4", True), *((suffix, False) for suffix in CONTAINERS)]
)
def test_wherever_a_file_is_cut(tmp_path, suffix, num_frames, faststart):
    path = tmp_path / f"whole{suffix}"
    write_clip(path, num_frames, noise=4, faststart=faststart, **CONTAINERS[suffix])
    assert check_video(path, Sampling()).reason is None
    content = path.read_bytes()
    ends = packet_ends(path)
    cut = tmp_path / f"cut{suffix}"
    places = {end + shift for end in ends for shift in (-9, -1, 0, 1)}
    for place in sorted(place for place in places if 0 < place < len(content)):
        cut.write_bytes(content[:place])
        with pytest.raises(VideoError, match=r"truncated|damaged"):
            read_frames(cut)
        assert check_video(cut, Sampling()).reason is not None


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("live.mkv", {"muxing": {"live": "1", "cluster_time_limit": "500"}}),
        ("live.webm", {"codec": "libvpx", "muxing": {"live": "1", "cluster_time_limit": "500"}}),
        ("fragmented.mp4", {"muxing": {"movflags": "frag_keyframe+empty_moov"}}),
    ],
)
def test_a_stream_is_named_or_said_to_be_of_unknown_length(tmp_path, name, options):
    path = write_clip(tmp_path / name, 40, noise=4, key_frame_every=5, **options)
    content = path.read_bytes()
    cut = tmp_path / f"cut{path.suffix}"
    num_unknown = 0
    for place in range(len(content) // 5, len(content), len(content) // 60):
        cut.write_bytes(content[:place])
        reason, length_is_known = check_video(cut, Sampling())
        assert reason is not None or not length_is_known
        num_unknown += reason is None
    # Only a cut between two fragments leaves no trace.
    assert num_unknown <= 6


@pytest.mark.parametrize("suffix", CONTAINERS)
def test_every_length_in_bytes(tmp_path, suffix):
    path = write_clip(tmp_path / f"whole{suffix}", 12, size=(16, 16), **CONTAINERS[suffix])
    content = path.read_bytes()
    ends = packet_ends(path)
    cut = tmp_path / f"cut{suffix}"
    for place in range(len(content)):
        if sum(end > place for end in ends) > 0.05 * len(ends):
            cut.write_bytes(content[:place])
            with pytest.raises(VideoError):
                read_frames(cut)
