"""Finding the files of videos in a folder."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from garevla.data.splits import AnnotationError

# In order of preference where a video id has files of several kinds.
VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi")


def find_videos(
    video_dir: str | os.PathLike[str], video_ids: Iterable[str] | None = None
) -> dict[str, Path]:
    """Find the files of videos in a folder and its sub-folders, walking through them once.

    Args:
        video_dir: the folder.
        video_ids: which videos; ``None`` means all whose names do not begin with a dot.

    Returns:
        video id -> file, in the order of ``video_ids`` or sorted; ids without a file are left out.

    Raises:
        FileNotFoundError: there is no such folder.
        AnnotationError: two files of the same kind for one id.
    """
    root = Path(video_dir)
    if not root.is_dir():
        raise FileNotFoundError(f"video folder {root} does not exist or is not a folder")
    wanted = None if video_ids is None else dict.fromkeys(video_ids)
    files_by_id: dict[str, dict[str, Path]] = {}
    for path in _files_below(root):
        is_wanted = path.stem in wanted if wanted is not None else not path.name.startswith(".")
        suffix = path.suffix.lower()
        if not is_wanted or suffix not in VIDEO_SUFFIXES:
            continue
        first = files_by_id.setdefault(path.stem, {}).setdefault(suffix, path)
        if first != path:
            raise AnnotationError(f"two files for video {path.stem!r}: {first} and {path}")
    preference = VIDEO_SUFFIXES.index
    return {
        video_id: files_by_id[video_id][min(files_by_id[video_id], key=preference)]
        for video_id in (sorted(files_by_id) if wanted is None else wanted)
        if video_id in files_by_id
    }


def _files_below(root: Path) -> Iterator[Path]:
    """Yield all files in sorted order, following links to folders."""
    seen_folders: set[str] = set()
    for folder, sub_folders, names in os.walk(root, followlinks=True):
        # A link back up would never end.
        real = os.path.realpath(folder)
        if real in seen_folders:
            sub_folders.clear()
            continue
        seen_folders.add(real)
        sub_folders.sort()
        for name in sorted(names):
            yield Path(folder, name)
