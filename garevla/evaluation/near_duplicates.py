"""Lists of videos that show the same, which count as right answers for each other's captions."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from garevla.data.annotation_files import read_json, read_text
from garevla.data.messages import shortened
from garevla.data.splits import AnnotationError


@dataclass(frozen=True)
class NearDuplicates:
    """Groups of videos.

    Attributes:
        groups: (B,) int64; videos of one number are near-duplicates.
        description: file, numbers and digest, by which a protocol names them.
    """

    groups: np.ndarray
    description: str

    @classmethod
    def load(cls, path: Path, video_ids: Sequence[str]) -> NearDuplicates:
        """Read groups of video ids; groups that share a video are one.

        Args:
            path: a ``.json`` file with a list of lists, or text with a group in each line, its ids
                separated by commas or tabs.
            video_ids: B ids, the videos that are ranked.

        Raises:
            FileNotFoundError: there is no such file.
            AnnotationError: it is not in such a form, has groups of less than two videos, or names
                videos that are not among ``video_ids``.
        """
        listed = _read_groups(path)
        position = {video_id: index for index, video_id in enumerate(video_ids)}
        unknown = [video_id for ids in listed for video_id in ids if video_id not in position]
        if unknown:
            raise AnnotationError(
                f"{path} names {len(unknown)} videos that are not ranked: {shortened(unknown)}"
            )
        groups = np.arange(len(video_ids), dtype=np.int64)
        for ids in listed:
            numbers = groups[[position[video_id] for video_id in ids]]
            groups[np.isin(groups, numbers)] = numbers.min()
        members = [np.flatnonzero(groups == number).tolist() for number in np.unique(groups)]
        several = sorted(sorted(video_ids[i] for i in each) for each in members if len(each) > 1)
        digest = hashlib.sha256(json.dumps(several).encode()).hexdigest()
        return cls(
            groups,
            f"{path.name}, {len(several)} groups of {sum(map(len, several))} videos "
            f"(sha256 {digest[:12]})",
        )


def _read_groups(path: Path) -> list[list[str]]:
    if path.suffix == ".json":
        groups = read_json(path)
        if not isinstance(groups, list) or not all(
            isinstance(ids, list) and all(isinstance(video_id, str) for video_id in ids)
            for ids in groups
        ):
            raise AnnotationError(f"{path} must be a list of lists of video ids")
        numbered = list(enumerate(groups, start=1))
        unit = "list"
    else:
        text = read_text(path)
        rows = csv.reader(text.splitlines(), delimiter="\t" if "\t" in text else ",", strict=True)
        try:
            numbered = [
                (rows.line_num, [v.strip() for v in row if v.strip()]) for row in rows if row
            ]
        except csv.Error as error:
            raise AnnotationError(f"{path}, line {rows.line_num}: {error}") from error
        unit = "line"
    for number, ids in numbered:
        if len(set(ids)) < 2:
            raise AnnotationError(f"{path}, {unit} {number}: not two videos or more: {ids}")
    if not numbered:
        raise AnnotationError(f"{path} lists no videos")
    return [ids for _, ids in numbered]
