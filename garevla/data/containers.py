"""Whether a file has all the bytes that its container declares: MP4's family, Matroska, AVI.

Demuxers read a shortened Matroska or AVI file to its end and say nothing. The sizes that the
containers write down tell, to the byte: ISO/IEC 14496-12 (boxes), RFC 8794 and 9559 (Matroska's
elements), and RIFF's chunks.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO, NamedTuple

from garevla.data.video_errors import VideoError


class Container(NamedTuple):
    """What the beginning and the sizes of a file say.

    Attributes:
        kind: ``"mp4"`` (with MOV and 3GP), ``"matroska"`` (with WebM), ``"avi"`` or ``"other"``.
        shows_end: whether a file of any smaller size would have been refused.
    """

    kind: str
    shows_end: bool


def inspect_container(path: Path) -> Container:
    """Look at a file's container, reading little of it.

    Raises:
        VideoError: it is missing, empty, not a file, may not be read, or is truncated.
    """
    try:
        if not path.is_file():
            raise VideoError.of(path, "not a file" if path.exists() else "no such file")
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if not size:
                raise VideoError.of(path, "the file is empty (0 bytes)")
            beginning = file.read(16)
            if beginning[4:8] in _MP4_BEGINNINGS:
                return _inspect_mp4(path, file, size)
            if beginning[:4] == b"\x1a\x45\xdf\xa3":
                return _inspect_matroska(path, file, size)
            if beginning[:4] == b"RIFF" and beginning[8:12] == b"AVI ":
                return _inspect_avi(path, file, size)
    except PermissionError as error:
        raise VideoError.of(path, "permission denied") from error
    except (OSError, ValueError) as error:  # a name with a null character is a ValueError
        raise VideoError.of(path, str(error)) from error
    return Container("other", shows_end=False)


_SEGMENT, _CLUSTER = 0x18538067, 0x1F43B675

# Those that stand outside of segments, in segments and in clusters (RFC 9559, section 5).
_MATROSKA_ELEMENTS = {
    *(0x1A45DFA3, 0xEC, 0xBF, _SEGMENT),
    *(0x114D9B74, 0x1549A966, _CLUSTER, 0x1654AE6B, 0x1C53BB6B, 0x1941A469, 0x1043A770, 0x1254C367),
    *(0xE7, 0x5854, 0xA7, 0xAB, 0xA3, 0xA0, 0xAF),
}

_MP4_BEGINNINGS = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot", b"styp")


def _inspect_mp4(path: Path, file: BinaryIO, size: int) -> Container:
    kinds = set()
    position = 0
    open_end = False
    while position + 8 <= size:
        file.seek(position)
        header = file.read(16)
        length, kind = int.from_bytes(header[:4], "big"), header[4:8]
        if length == 1:
            length = int.from_bytes(header[8:], "big")
        elif length == 0 and kind.strip(b"\0"):
            length, open_end = size - position, True
        if length < 8:  # no box: padding, or damage that the decoder meets
            break
        kinds.add(kind)
        position += length
    _check_size(path, position, size)
    if b"moov" not in kinds:
        raise VideoError.of(path, "truncated or damaged: its index ('moov' box) is missing")
    # The last box of a fragmented file, which not every program writes.
    ends = b"mfra" in kinds or b"moof" not in kinds
    return Container("mp4", shows_end=ends and not open_end)


def _inspect_matroska(path: Path, file: BinaryIO, size: int) -> Container:
    position = 0
    while position < size:
        file.seek(position)
        kind, length, start = _matroska_element(file.read(12))
        if kind == _SEGMENT and length is None:
            # Written as a stream. Its clusters, which come next, mostly have sizes.
            position += start
            continue
        if length is None:
            break
        position += start + length
        _check_size(path, position, size)
        if kind == _SEGMENT:
            return Container("matroska", shows_end=True)
    return Container("matroska", shows_end=False)


def check_elements(path: Path, container: Container) -> None:
    """Go through all elements of a Matroska or AVI file, of which demuxers skip damaged ones.

    Raises:
        VideoError: something in it is none.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if container.kind == "matroska":
            bad = _first_bad_element(file, size)
        else:
            bad = _first_bad_chunk(file, size) if container.kind == "avi" else None
    if bad is not None:
        raise VideoError.of(path, f"damaged: no element of its container at byte {bad:,}")


def _first_bad_element(file: BinaryIO, end: int) -> int | None:
    position = 0
    while position < end:
        file.seek(position)
        kind, length, start = _matroska_element(file.read(12))
        if kind not in _MATROSKA_ELEMENTS:
            return position
        position += start
        if kind == _SEGMENT and length is not None:
            end = position + length
        elif kind not in (_SEGMENT, _CLUSTER):
            position += length or 0
    return None


def _first_bad_chunk(file: BinaryIO, size: int) -> int | None:
    position = 0
    while position + 8 <= size:
        file.seek(position)
        header = file.read(12)
        kind, length = header[:4], int.from_bytes(header[4:8], "little")
        if not kind.isalnum() and kind not in (b"rec ", b"AVI "):
            return position
        if kind in (b"RIFF", b"LIST") and header[8:] in (b"AVI ", b"AVIX", b"movi", b"rec "):
            position += 12
        else:
            position += 8 + length + length % 2
    # The last chunk may go without its byte of padding.
    return position if position > size + 1 else None


def _matroska_element(header: bytes) -> tuple[int, int | None, int]:
    """An element's id, the size of its data (None where that is not known) and where it begins."""
    id_bytes = 9 - header[0].bit_length()
    first = header[id_bytes : id_bytes + 1]
    if id_bytes > 4 or not first or not first[0]:
        return 0, None, 0  # no element
    size_bytes = 9 - first[0].bit_length()
    kind = int.from_bytes(header[:id_bytes], "big")
    unknown = (1 << 7 * size_bytes) - 1
    length = int.from_bytes(header[id_bytes : id_bytes + size_bytes], "big") & unknown
    return kind, None if length == unknown else length, id_bytes + size_bytes


def _inspect_avi(path: Path, file: BinaryIO, size: int) -> Container:
    position = 0
    # Files beyond a gigabyte have several chunks.
    while position + 8 <= size:
        file.seek(position)
        header = file.read(8)
        length = int.from_bytes(header[4:], "little")
        if header[:4] != b"RIFF":
            break
        if not length:  # never filled in
            return Container("avi", shows_end=False)
        position += 8 + length
    _check_size(path, position, size)
    return Container("avi", shows_end=True)


def _check_size(path: Path, declared: int, size: int) -> None:
    if declared > size:
        raise VideoError.of(
            path, f"truncated: its container declares {declared:,} bytes, the file has {size:,}"
        )
