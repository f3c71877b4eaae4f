"""What a folder of annotation files holds, in figures."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from garevla.data.layouts.base import Layout
from garevla.data.messages import shortened
from garevla.data.splits import (
    AnnotationError,
    Annotations,
    repeated_captions,
    shared_captions,
)
from garevla.data.video_files import VIDEO_SUFFIXES, files_below


@dataclass(frozen=True)
class FolderSummary:
    """The splits of a folder.

    Attributes:
        splits: those that are there, by name.
        notes: of each of them what is left out and what looks wrong, videos without a file among
            it; under ``""`` what is of none.
        absent: those that are not there: the file that lacks.
        errors: those that cannot be read: why not.
    """

    splits: Mapping[str, Annotations]
    notes: Mapping[str, Sequence[str]]
    absent: Mapping[str, str]
    errors: Mapping[str, str]

    def lines(self) -> list[str]:
        """A table of the counts, and below it the notes."""
        counts = {
            name: (len(each.video_ids), len(each.captions)) for name, each in self.splits.items()
        }
        # Clips are parts of other splits' videos.
        whole = [name for name, each in self.splits.items() if not each.clips]
        ids = [video_id for name in whole for video_id in self.splits[name].video_ids]
        if len(whole) > 1 and len(set(ids)) == len(ids):
            counts["in all"] = (len(ids), sum(counts[name][1] for name in whole))
        width = max(map(len, counts), default=0)
        lines = [f"{'split':{width}}  {'videos':>8}  {'captions':>8}"] if counts else []
        for name, (num_videos, num_captions) in counts.items():
            is_clips = name in self.splits and self.splits[name].clips
            lines.append(
                f"{name:{width}}  {num_videos:8,d}  {num_captions:8,d}"
                f"{'  (parts of videos)' if is_clips else ''}"
            )
        splits_of: dict[str, list[str]] = {}
        for name, notes in self.notes.items():
            for note in notes:
                splits_of.setdefault(note, []).append(name)
        lines += [
            f"{', '.join(names)}: {note}".removeprefix(": ") for note, names in splits_of.items()
        ]
        lines += [f"{name}: not there, {reason}" for name, reason in self.absent.items()]
        return lines + [f"{name}: cannot be read, {reason}" for name, reason in self.errors.items()]


def summarize(
    layout: Layout,
    annotation_dir: str | os.PathLike[str],
    video_dir: str | os.PathLike[str] | None = None,
) -> FolderSummary:
    """Read all splits of a folder, and look for their videos.

    Args:
        layout: the folder's.
        annotation_dir: folder of the annotation files.
        video_dir: folder of the videos, or None: they are not looked for.

    Raises:
        FileNotFoundError: there is no such folder of videos.
        AnnotationError: it cannot be told which file is a video's.
    """
    splits: dict[str, Annotations] = {}
    notes: dict[str, list[str]] = {}
    absent: dict[str, str] = {}
    errors: dict[str, str] = {}
    used: set[Path] = set()
    for name in layout.splits:
        try:
            found = layout.annotations(annotation_dir, name)
        except FileNotFoundError as error:
            absent[name] = str(error)
            continue
        except AnnotationError as error:
            errors[name] = str(error)
            continue
        splits[name] = found
        of_captions = (repeated_captions(found.captions), shared_captions(found.captions))
        notes[name] = [*found.notes, *filter(None, of_captions)]
        if video_dir is not None:
            files = layout.find_files(found, video_dir)
            used.update(files.values())
            missing = [video_id for video_id in found.video_ids if video_id not in files]
            if missing:
                notes[name].append(
                    f"{len(missing)} of {len(found.video_ids)} videos have no file in {video_dir}: "
                    f"{shortened(missing)}"
                )
    if video_dir is not None:
        videos = [p for p in files_below(Path(video_dir)) if p.suffix.lower() in VIDEO_SUFFIXES]
        extra = [path for path in videos if path not in used]
        if extra:
            notes[""] = [
                f"{len(extra)} of {len(videos)} video files are of no split: {shortened(extra)}"
            ]
    return FolderSummary(splits, notes, absent, errors)
