from __future__ import annotations

import pytest

from benchmarks.tables.text import bytes_text, markdown, rate_text, seconds_text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(123.4, "123 s"), (1.234, "1.23 s"), (0.0456, "45.6 ms"), (7.89e-6, "7.89 µs")],
)
def test_seconds(seconds, text):
    assert seconds_text(seconds) == text


def test_bytes_and_rates():
    assert bytes_text(1.5 * 2**30) == "1.50 GiB"
    assert bytes_text(2**20 / 2) == "0.50 MiB"
    assert bytes_text(None) == "unknown"
    assert rate_text(1.5e6) == "1.50 M"
    assert rate_text(12) == "12.0"


def test_tables_are_markdown_with_aligned_columns():
    assert markdown(["<name", "n"], [["a", "1"], ["bcdef", "2000"]]).split("\n") == [
        "| name  |    n |",
        "| ----- | ---: |",
        "| a     |    1 |",
        "| bcdef | 2000 |",
    ]
