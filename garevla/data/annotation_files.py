"""Reading annotation files, with errors that name the file and the line."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from garevla.data.splits import AnnotationError


def read_csv(path: Path, columns: tuple[str, ...]) -> list[dict[str, str]]:
    """Read some columns of a CSV file with a header; values are stripped of white space.

    Raises:
        FileNotFoundError: there is no such file.
        AnnotationError: a missing column, a row with too many fields or an empty value, a quote
            that is not closed or takes in other rows, no row, or bytes that are not UTF-8.
    """
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""), strict=True)
    rows = []
    for first_line, row in _numbered_rows(path, reader, columns):
        where = f"{path}, line {first_line}"
        if row.get(None) is not None:
            raise AnnotationError(
                f"{where}: more fields than columns; a sentence with commas needs quotes"
            )
        if _takes_in_rows(list(row.values())):
            raise AnnotationError(
                f"{where}: a field in quotes takes in the rows up to line {reader.line_num}; a "
                "quote is missing or one too many"
            )
        values = {column: (row[column] or "").strip() for column in columns}
        for column, value in values.items():
            if not value:
                raise AnnotationError(f"{where}: no {column}")
        rows.append(values)
    if not rows:
        raise AnnotationError(f"{path} has no rows")
    return rows


def _numbered_rows(
    path: Path, reader: csv.DictReader[str], columns: tuple[str, ...]
) -> Iterator[tuple[int, dict[str | Any, str | Any]]]:
    """Yield the rows with the number of the line they begin on, after a check of the header."""
    first_line = 1
    try:
        absent = [column for column in columns if column not in (reader.fieldnames or ())]
        if absent:
            raise AnnotationError(
                f"{path} has no column {absent[0]!r}; it has {list(reader.fieldnames or ())}"
            )
        first_line = reader.line_num + 1
        for row in reader:
            yield first_line, row
            first_line = reader.line_num + 1
    except csv.Error as error:
        raise AnnotationError(
            f"{path}, line {first_line}: {error}; is a quote not closed, or one too many?"
        ) from error


def _takes_in_rows(fields: list[str | None]) -> bool:
    """Whether a field of several lines holds the rest of a row and the beginning of another."""
    after = len(fields) - 1
    for before, field in enumerate(fields):
        commas = [line.count(",") for line in (field or "").split("\n")]
        if len(commas) > 1:
            first, *whole, last = commas
            least = min(whole, default=after)
            if first >= after - before and least >= after and last >= before:
                return True
    return False


def read_json(path: Path, object_pairs_hook: Callable[[list[tuple[str, Any]]], Any] = dict) -> Any:
    """Read a JSON file.

    Args:
        path: the file.
        object_pairs_hook: makes an object of its keys and values.

    Raises:
        FileNotFoundError: there is no such file.
        AnnotationError: it is not valid JSON, or not UTF-8.
    """
    text = read_text(path)
    try:
        return json.loads(text, object_pairs_hook=object_pairs_hook)
    except RecursionError:
        raise AnnotationError(f"{path} cannot be read: its JSON is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise AnnotationError(f"{path} is not valid JSON: {error}") from error


def read_text(path: Path) -> str:
    """Read a UTF-8 file, with or without a byte order mark.

    Raises:
        FileNotFoundError: there is no such file.
        AnnotationError: it is not UTF-8; the message names the first byte that is not.
    """
    if not path.is_file():
        raise FileNotFoundError(f"annotation file {path} does not exist")
    content = path.read_bytes()
    try:
        return content.decode().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise AnnotationError(
            f"{path} is not UTF-8: byte 0x{content[error.start]:02x} at offset {error.start}, line "
            f"{line}; save it as UTF-8"
        ) from error


def check_is_text(where: str, text: str, error: type[ValueError] = AnnotationError) -> None:
    """Check that a string can be written down, which JSON's escapes do not ensure.

    Raises:
        ValueError: it has half of a surrogate pair; of the type ``error``, beginning with
            ``where``.
    """
    try:
        text.encode()
    except UnicodeEncodeError as cause:
        half = f"\\u{ord(text[cause.start]):04x}"
        raise error(f"{where}: {half} is half of a character") from cause
