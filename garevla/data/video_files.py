"""Finding the files of videos in a folder."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from garevla.data.splits import AnnotationError

# In order of preference where a video id has files of several kinds.
VIDEO_SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi"),
    *(".3gp", ".3g2", ".flv", ".f4v", ".mpg", ".mpeg", ".wmv", ".asf", ".ogv"),
    *(".ts", ".mts", ".m2ts", ".vob", ".gif"),
)


def find_videos(
    video_dir: str | os.PathLike[str], video_ids: Iterable[str] | None = None
) -> dict[str, Path]:
    """Find the files of videos in a folder and its sub-folders, walking through them once.

    Args:
        video_dir: the folder.
        video_ids: which videos, named like their files, with or without the suffix, or by the path
            below the folder. ``None`` means all files with one of ``VIDEO_SUFFIXES`` and no dot
            before their name.

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
    for path in files_below(root):
        below = () if wanted is None else _paths_below(root, path)
        for video_id, kind in (*_ids_of(path), *below):
            is_wanted = video_id in wanted if wanted is not None else kind and path.name[0] != "."
            if not is_wanted:
                continue
            first = files_by_id.setdefault(video_id, {}).setdefault(kind, path)
            if first != path:
                raise AnnotationError(f"two files for video {video_id!r}: {first} and {path}")
    preference = (*VIDEO_SUFFIXES, "").index
    return {
        video_id: files_by_id[video_id][min(files_by_id[video_id], key=preference)]
        for video_id in (sorted(files_by_id) if wanted is None else wanted)
        if video_id in files_by_id
    }


def find_all_videos(video_dir: str | os.PathLike[str]) -> dict[str, Path]:
    """The same for all videos of a folder, of which there must be one.

    Raises:
        FileNotFoundError, AnnotationError: as :func:`find_videos`; no video.
    """
    videos = find_videos(video_dir)
    if not videos:
        raise AnnotationError(f"no video ({', '.join(VIDEO_SUFFIXES)}) in {video_dir}")
    return videos


def find_named_videos(
    video_dir: str | os.PathLike[str], names: Mapping[str, Sequence[str]]
) -> dict[str, Path]:
    """Find the files of videos that go by several names.

    A file is the video's that has the better name for it, and no other's.

    Args:
        video_dir: the folder.
        names: video id -> what its file may be called, see :func:`find_videos`; the best first.

    Returns:
        video id -> file, in the order of ``names``; ids without a file are left out.

    Raises:
        FileNotFoundError: there is no such folder.
        AnnotationError: two files for a name, or two videos for a file.
    """
    found = find_videos(video_dir, (name for each in names.values() for name in each))
    owners: dict[Path, str] = {}
    files: dict[str, Path] = {}
    for rank in range(max(map(len, names.values()), default=0)):
        claims: dict[Path, str] = {}
        for video_id, candidates in names.items():
            path = found.get(candidates[rank]) if rank < len(candidates) else None
            if path is None or video_id in files or path in owners:
                continue
            if path in claims:
                raise AnnotationError(
                    f"{path} may be the file of {claims[path]!r} and of {video_id!r}"
                )
            claims[path] = video_id
        owners |= claims
        files |= {video_id: path for path, video_id in claims.items()}
    return {video_id: files[video_id] for video_id in names if video_id in files}


def _ids_of(path: Path) -> Iterator[tuple[str, str]]:
    """Yield the ids whose video a file may be, each with the file's kind."""
    if path.suffix.lower() in VIDEO_SUFFIXES:
        yield path.stem, path.suffix.lower()
    yield path.name, ""


def _paths_below(root: Path, path: Path) -> Iterator[tuple[str, str]]:
    """Yield the same of a file in a sub-folder, by its path."""
    if path.parent != root:
        below = path.relative_to(root)
        for name, kind in _ids_of(path):
            yield below.with_name(name).as_posix(), kind


def files_below(root: Path) -> Iterator[Path]:
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


def video_files(
    video_dir: str | os.PathLike[str], *, leave_out: str | os.PathLike[str] | None = None
) -> list[Path]:
    """All files of videos in a folder and its sub-folders: with one of ``VIDEO_SUFFIXES`` and no
    dot before their name.

    Args:
        video_dir: the folder.
        leave_out: a folder in it that is passed over.
    """
    skipped = None if leave_out is None else Path(os.path.abspath(leave_out))
    return [
        path
        for path in files_below(Path(video_dir))
        if path.suffix.lower() in VIDEO_SUFFIXES
        and path.name[0] != "."
        and (skipped is None or skipped not in path.parents)
    ]
