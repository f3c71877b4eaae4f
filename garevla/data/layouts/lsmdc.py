"""LSMDC: a table of clips and sentences for each split."""

from __future__ import annotations

from pathlib import Path

from garevla.data.annotation_files import read_lines
from garevla.data.layouts import register_layout
from garevla.data.layouts.base import Layout
from garevla.data.messages import shortened
from garevla.data.splits import AnnotationError, Annotations, Caption

FILES = {
    "train": "LSMDC16_annos_training.csv",
    "val": "LSMDC16_annos_val.csv",
    "test": "LSMDC16_challenge_1000_publictect.csv",
}
_COLUMNS = 6

# Damaged or missing in the videos as they are distributed; CLIP4Clip leaves them out.
BAD_CLIPS = (
    "0017_Pianist_00.23.28.872-00.23.34.843",
    "0017_Pianist_00.30.36.767-00.30.38.009",
    "3064_SPARKLE_2012_01.41.07.000-01.41.11.793",
)


class LSMDC(Layout):
    """The files of the LSMDC16 challenge.

    Each line has six fields with tabs between them and no header: clip, its times in the film as
    aligned and as cut, and a sentence. The same clip may have several lines, which are several
    captions. Clips that are known to be bad are noted, and left out of the other splits than the
    test split, whose 1,000 clips figures are about.
    """

    splits = tuple(FILES)
    looks_for = ("LSMDC16_*.csv",)
    files = """\
annotations/LSMDC16_annos_training.csv             clip, times, sentence; also LSMDC16_annos_val.csv
annotations/LSMDC16_challenge_1000_publictect.csv  the test split
videos/0001_FILM/0001_FILM_00.01.02.003-00.01.05.006.avi"""

    def read(self, annotation_dir: Path, split: str) -> Annotations:
        """As :meth:`Layout.read`."""
        path = annotation_dir / FILES[split]
        captions = []
        for number, line in read_lines(path):
            fields = [field.strip() for field in line.split("\t")]
            if len(fields) != _COLUMNS or not fields[0] or not fields[-1]:
                raise AnnotationError(
                    f"{path}, line {number}: must be {_COLUMNS} fields with tabs between them, the "
                    f"first a clip and the last a sentence, got {len(fields)} fields"
                )
            captions.append(Caption(fields[0], fields[-1]))
        bad = dict.fromkeys(c.video_id for c in captions if c.video_id in BAD_CLIPS)
        kept = [c for c in captions if split == "test" or c.video_id not in bad]
        notes = []
        if bad:
            left_out = f" and left out, {len(captions) - len(kept)} captions"
            notes.append(
                f"{len(bad)} clips are known to be damaged or missing"
                f"{'' if split == 'test' else left_out}: {shortened(bad)}"
            )
        again = len(kept) - len({caption.video_id for caption in kept})
        if again:
            notes.append(f"{again} of {len(kept)} lines are further captions of a clip")
        return Annotations(kept, notes)


register_layout("lsmdc", LSMDC())
