"""Reading annotation files, with errors that name the file and the line."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from garevla.data.splits import AnnotationError


def read_csv(path: Path, columns: tuple[str, ...]) -> list[dict[str, str]]:
    """Read some columns of a CSV file with a header; values are stripped of white space.

    Raises:
        FileNotFoundError: there is no such file.
        AnnotationError: a missing column, a row with too many fields or an empty value, or no row.
    """
    _check_exists(path)
    rows = []
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        absent = [column for column in columns if column not in (reader.fieldnames or ())]
        if absent:
            raise AnnotationError(
                f"{path} has no column {absent[0]!r}; it has {list(reader.fieldnames or ())}"
            )
        for row in reader:
            if row.get(None) is not None:
                raise AnnotationError(
                    f"{path}, line {reader.line_num}: more fields than columns; a sentence with "
                    "commas needs quotes"
                )
            values = {column: (row[column] or "").strip() for column in columns}
            for column, value in values.items():
                if not value:
                    raise AnnotationError(f"{path}, line {reader.line_num}: no {column}")
            rows.append(values)
    if not rows:
        raise AnnotationError(f"{path} has no rows")
    return rows


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        FileNotFoundError: there is no such file.
        AnnotationError: it is not valid JSON.
    """
    _check_exists(path)
    try:
        with path.open(encoding="utf-8-sig") as file:
            return json.load(file)
    except ValueError as error:
        raise AnnotationError(f"{path} is not valid JSON: {error}") from error


def _check_exists(path: Path) -> None:
    if not path.is_file():
        raise FileNotFoundError(f"annotation file {path} does not exist")
