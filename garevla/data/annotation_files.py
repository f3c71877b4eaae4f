"""Reading annotation files, with errors that name the file and the line."""

from __future__ import annotations

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from garevla.data.messages import brief, shortened
from garevla.data.splits import AnnotationError


def read_csv(
    path: Path,
    columns: tuple[str, ...],
    optional: tuple[str, ...] = (),
    *,
    separator: str = ",",
) -> list[dict[str, str]]:
    """Read some columns of a CSV file with a header; values are stripped of white space.

    Args:
        path: the file.
        columns: those that every row must have a value of.
        optional: those that may be absent or empty, and are empty then.
        separator: a tab for TSV files, in which quotes mean nothing.

    Raises:
        FileNotFoundError: there is no such file.
        AnnotationError: a missing column, a row with too many fields or an empty value, a quote
            that is not closed or takes in other rows, no row, or bytes that are not UTF-8.
    """
    reader = csv.DictReader(
        io.StringIO(read_text(path), newline=""),
        delimiter=separator,
        quoting=csv.QUOTE_NONE if separator == "\t" else csv.QUOTE_MINIMAL,
        strict=True,
    )
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
        values = {column: (row.get(column) or "").strip() for column in (*columns, *optional)}
        for column in columns:
            if not values[column]:
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
    except AnnotationError as error:
        raise AnnotationError(f"{path}: {error}") from None
    # Also what Python says of numbers with thousands of digits.
    except ValueError as error:
        raise AnnotationError(f"{path} is not valid JSON: {error}") from error


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object of its keys and values, for :func:`read_json`.

    Raises:
        AnnotationError: a key occurs twice.
    """
    unique = dict(pairs)
    if len(unique) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise AnnotationError(f"key {key!r} occurs twice")
            seen.add(key)
    return unique


def check_objects(where: str, content: object, *fields: str) -> list[dict[str, Any]]:
    """Check that a value from JSON is a list of objects with some strings in them.

    Args:
        where: what the value is, for errors.
        content: the value.
        fields: names of the strings.

    Raises:
        AnnotationError: it is not.
    """
    if not isinstance(content, list):
        raise AnnotationError(f"{where} must be a list of objects, got {brief(content)}")
    for index, each in enumerate(content):
        values = each if isinstance(each, dict) else {}
        if not all(isinstance(values.get(field), str) for field in fields):
            needed = " and ".join(map(repr, fields))
            raise AnnotationError(
                f"{where}[{index}]: needs string{'s' * (len(fields) > 1)} {needed}, got "
                f"{brief(each)}"
            )
    return content


def check_text(where: str, value: object) -> str:
    """Check that a value from JSON is a string with something in it; return it stripped.

    Raises:
        AnnotationError: it is not.
    """
    if not isinstance(value, str) or not value.strip():
        raise AnnotationError(f"{where} must be a text that is not empty, got {brief(value)}")
    return value.strip()


def check_texts(where: str, value: object) -> list[str]:
    """Check that a value from JSON is a list of texts, none empty; return them stripped.

    Raises:
        AnnotationError: it is not.
    """
    if not isinstance(value, list):
        raise AnnotationError(f"{where} must be a list of texts, got {brief(value)}")
    return [check_text(f"{where}[{index}]", text) for index, text in enumerate(value)]


def check_number(where: str, value: object) -> float:
    """Check that a value from JSON, or a text, is a finite number.

    Raises:
        AnnotationError: it is not.
    """
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        try:
            number = float(value)
        except (ValueError, OverflowError):
            number = math.nan
        if math.isfinite(number):
            return number
    raise AnnotationError(f"{where} must be a number, got {brief(value)}")


def read_lines(path: Path) -> list[tuple[int, str]]:
    """Read the lines of a file that are not empty, with their numbers; stripped of white space.

    Raises:
        FileNotFoundError, AnnotationError: as :func:`read_text`.
    """
    # Not str.splitlines, which ends lines at characters that captions may hold.
    lines = ((number, line.strip()) for number, line in enumerate(read_text(path).split("\n"), 1))
    return [(number, line) for number, line in lines if line]


def read_list(path: Path, notes: list[str]) -> dict[str, None]:
    """Read a list of ids, one a line, each taken once.

    Args:
        path: the file.
        notes: where repetitions are noted.

    Raises:
        FileNotFoundError: there is no such file.
        AnnotationError: it is empty, or not UTF-8.
    """
    return unique_ids(path, (line for _, line in read_lines(path)), notes)


def unique_ids(path: Path, ids: Iterable[str], notes: list[str]) -> dict[str, None]:
    """Take each id of a file once, noting those that are there more often.

    Raises:
        AnnotationError: there is none.
    """
    listed = list(ids)
    if not listed:
        raise AnnotationError(f"{path} has no id in it")
    unique = dict.fromkeys(listed)
    if len(unique) < len(listed):
        again = [each for each, count in Counter(listed).items() if count > 1]
        notes.append(f"{len(again)} ids are listed more than once in {path}: {shortened(again)}")
    return unique


def note_absent(
    wanted: Iterable[str], present: Mapping[str, object], what: str, notes: list[str]
) -> None:
    """Note the ids that something lacks.

    Args:
        wanted: ids.
        present: what has some of them.
        what: the rest of the sentence, ``"... of ... videos <what>: ..."``.
        notes: where to.
    """
    ids = list(wanted)
    absent = [each for each in ids if each not in present]
    if absent:
        notes.append(f"{len(absent)} of {len(ids)} videos {what}: {shortened(absent)}")


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
