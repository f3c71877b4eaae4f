"""Thumbnails and videos over HTTP."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from fastapi import Request
from fastapi.responses import FileResponse, Response

from garevla.search.library import Library

# What browsers take the files of garevla.data.video_files.VIDEO_SUFFIXES for. Some refuse
# QuickTime by its name, and play the H.264 in it.
_MEDIA_TYPES = {
    **dict.fromkeys((".mp4", ".m4v", ".mov", ".f4v"), "video/mp4"),
    **dict.fromkeys((".mpg", ".mpeg", ".vob"), "video/mpeg"),
    **dict.fromkeys((".ts", ".mts", ".m2ts"), "video/mp2t"),
    **dict.fromkeys((".wmv", ".asf"), "video/x-ms-wmv"),
    ".mkv": "video/x-matroska",
    ".webm": "video/webm",
    ".avi": "video/x-msvideo",
    ".3gp": "video/3gpp",
    ".3g2": "video/3gpp2",
    ".flv": "video/x-flv",
    ".ogv": "video/ogg",
    ".gif": "image/gif",
}


def media_type(path: Path) -> str:
    """The media type of a video, by its name; empty for what is no video's."""
    return _MEDIA_TYPES.get(path.suffix.lower(), "")


def readable(name: str) -> str:
    """A file's name with � for bytes that are no text, which JSON and HTTP cannot hold."""
    return os.fsencode(name).decode("utf-8", "replace")


def thumbnail(library: Library, segment_id: int, request: Request) -> Response:
    """The JPEG of a segment; 304 where the browser has it.

    Raises:
        KeyError: there is no such segment.
        LibraryError: it is damaged.
    """
    content = library.thumbnail(segment_id)
    # By content: another index may be served at this address later, with the same ids.
    tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    headers = {"etag": tag, "cache-control": "private, no-cache"}
    if tag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(content, media_type="image/jpeg", headers=headers)


def video(library: Library, video_id: int) -> Response:
    """A video's file, or the ranges of it that are asked for.

    Raises:
        KeyError: there is no such video.
        FileNotFoundError: its file is not there, or is a link that leads out of the folder.
    """
    path = video_file(library, video_id)
    return FileResponse(
        path,
        media_type=media_type(path),
        filename=readable(library.file(video_id).name),
        content_disposition_type="inline",
        headers={"cache-control": "private, no-cache"},
    )


def video_file(library: Library, video_id: int) -> Path:
    """The real path of a video, which lies in the folder of the index's videos.

    Raises:
        KeyError, FileNotFoundError: as :func:`video`.
    """
    name = readable(library.video(video_id).name)
    try:
        path = library.file(video_id).resolve(strict=True)
        folder = library.video_dir.resolve(strict=True)
    # A loop of links is a RuntimeError in older versions of Python.
    except (OSError, RuntimeError, ValueError) as error:
        raise FileNotFoundError(f"the file of {name} is not there any more") from error
    if not path.is_relative_to(folder):
        raise FileNotFoundError(f"{name} is a link that leads out of the folder of videos")
    if not path.is_file() or not media_type(path):
        raise FileNotFoundError(f"{name} is no file of a video any more")
    return path
