from __future__ import annotations

import pytest

from garevla.data import AnnotationError, Caption
from garevla.data.layouts import layout_of
from garevla.data.layouts.lsmdc import BAD_CLIPS, FILES

TIMES = "\t00.00.01\t00.00.02\t00.00.01\t00.00.02\t"
LINES = [f'1_A{TIMES}SOMEONE says "no".', f"2_B{TIMES}It\u2028rains.", f"1_A{TIMES}He nods."]


def read(folder, split):
    return layout_of("auto", folder).annotations(folder, split)


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_lines(tmp_path, end, mark):
    (tmp_path / FILES["train"]).write_bytes((mark + end.join(LINES) + end).encode())
    found = read(tmp_path, "train")
    assert found.captions == [
        Caption("1_A", 'SOMEONE says "no".'),
        Caption("2_B", "It\u2028rains."),
        Caption("1_A", "He nods."),
    ]
    assert found.notes == ["1 of 3 lines are further captions of a clip"]


def test_known_bad_clips(tmp_path):
    content = "\n".join([*LINES, f"{BAD_CLIPS[0]}{TIMES}x", f"{BAD_CLIPS[0]}{TIMES}y"])
    for name in FILES.values():
        (tmp_path / name).write_text(content)
    found = read(tmp_path, "train")
    assert found.video_ids == ["1_A", "2_B"]
    assert found.notes[0] == (
        f"1 clips are known to be damaged or missing and left out, 2 captions: {BAD_CLIPS[0]}"
    )
    assert len(read(tmp_path, "test").video_ids) == 3


@pytest.mark.parametrize("line", ["1_A\ttext", f"{TIMES}text", f"1_A{TIMES} ", "clip,a,b,c,d,text"])
def test_lines_of_another_form(tmp_path, line):
    (tmp_path / FILES["test"]).write_text(f"{LINES[0]}\n\n{line}\n")
    with pytest.raises(AnnotationError, match=r"publictect.csv, line 3: must be 6 fields"):
        read(tmp_path, "test")


def test_other_encodings_are_named(tmp_path):
    (tmp_path / FILES["test"]).write_bytes("\n".join(LINES).encode("utf-16"))
    with pytest.raises(AnnotationError, match="is not UTF-8: byte 0xff at offset 0, line 1"):
        read(tmp_path, "test")
