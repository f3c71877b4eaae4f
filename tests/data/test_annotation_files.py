from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest

from garevla.data import AnnotationError
from garevla.data.annotation_files import read_csv, read_json, read_text

HEADER = "key,vid_key,video_id,sentence\n"


def rows_of(count: int, quoted: frozenset[int] = frozenset()) -> list[str]:
    """Lines of a CSV file, some of them with a sentence in quotes."""
    return [
        f"ret{i},msr{i},video{i}," + (f'"a cook, at work {i}"' if i in quoted else f"a dog {i}")
        for i in range(count)
    ]


@pytest.fixture
def write(tmp_path: Path):
    def write_file(content: str | bytes, name: str = "test.csv") -> Path:
        data = content.encode() if isinstance(content, str) else content
        (tmp_path / name).write_bytes(data)
        return tmp_path / name

    return write_file


@pytest.mark.parametrize("quoted", [frozenset(), frozenset({3, 9, 10, 17}), frozenset({19})])
@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_wherever_one_quote_is_added_or_lost_no_row_is_lost_in_silence(write, quoted, ends):
    lines = rows_of(20, quoted)
    whole = HEADER + "\n".join(lines) + "\n"
    expected = {f"video{i}" for i in range(20)}
    for place in range(len(HEADER), len(whole)):
        variants = [whole[:place] + '"' + whole[place:]]
        if whole[place] == '"':
            variants.append(whole[:place] + whole[place + 1 :])
        for text in variants:
            path = write(text.replace("\n", ends))
            try:
                rows = read_csv(path, ("video_id", "sentence"))
            except AnnotationError:
                continue
            # A quote within a field or around nothing is a character like others.
            assert len(rows) == 20
            assert {row["video_id"].replace('"', "") for row in rows} == expected


def test_the_line_of_a_quote_that_is_not_closed_is_named(write):
    lines = rows_of(1000)
    lines[5] = 'ret5,msr5,video5,"a man'
    with pytest.raises(AnnotationError, match=r"test\.csv, line 7: .*is a quote not closed"):
        read_csv(write(HEADER + "\n".join(lines)), ("sentence",))
    # Closed again further down, which is valid CSV.
    lines[300] = 'ret300,msr300,video300,sings"'
    with pytest.raises(AnnotationError, match=r"line 7: .*takes in the rows up to line 302"):
        read_csv(write(HEADER + "\n".join(lines)), ("sentence",))


def test_a_field_beyond_the_limit_of_the_csv_module(write):
    path = write(HEADER + f"k,v,video0,{'a' * (csv.field_size_limit() + 1)}\n")
    with pytest.raises(AnnotationError, match=r"test\.csv, line 2: field larger than field limit"):
        read_csv(path, ("sentence",))


def test_sentences_of_several_lines_and_with_quotes_stay(write):
    sentences = ["one,\ntwo", 'he says "no", twice', 'a 12" screen', "first\n\nlast, but one,"]
    file = io.StringIO()
    writer = csv.writer(file)
    writer.writerow(["key", "vid_key", "video_id", "sentence"])
    writer.writerows(["k", "v", f"video{i}", text] for i, text in enumerate(sentences))
    found = read_csv(write(file.getvalue()), ("sentence",))
    assert [row["sentence"] for row in found] == sentences


def test_one_column_of_ids_has_no_field_of_several_lines(write):
    with pytest.raises(AnnotationError, match=r"line 2: .* takes in the rows up to line 4"):
        read_csv(write('video_id\n"video0\nvideo1\nvideo2"\nvideo3\n'), ("video_id",))


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_what_is_not_utf_8_is_named_with_the_byte(write, mark):
    good = "video_id,sentence\nvideo0,ein Café\n".encode()
    assert read_csv(write(mark + good), ("sentence",)) == [{"sentence": "ein Café"}]
    path = write(mark + good + "video1,ein Café\n".encode("latin-1"))
    offset = len(mark + good) + len("video1,ein Caf")
    message = rf"test\.csv is not UTF-8: byte 0xe9 at offset {offset}, line 3; save it as UTF-8"
    for read in (lambda: read_csv(path, ("sentence",)), lambda: read_json(path)):
        with pytest.raises(AnnotationError, match=message):
            read()


def test_utf_16_is_named(write):
    with pytest.raises(AnnotationError, match="not UTF-8: byte 0xff at offset 0, line 1"):
        read_text(write("video_id\nvideo0\n".encode("utf-16"), "wide.csv"))


def test_json_that_is_nested_too_deeply(write):
    with pytest.raises(AnnotationError, match=r"deep\.json .* nested too deeply"):
        read_json(write("[" * 200_000, "deep.json"))
