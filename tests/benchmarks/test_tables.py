from __future__ import annotations

import pytest

from benchmarks.tables import bytes_text, markdown_table, plain_table, rate_text, seconds_text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(123.4, "123 s"), (1.234, "1.23 s"), (0.0456, "45.6 ms"), (7.89e-6, "7.89 µs")],
)
def test_seconds(seconds, text):
    assert seconds_text(seconds) == text


def test_bytes_and_rates():
    assert bytes_text(1.5 * 2**30) == "1.50 GiB"
    assert bytes_text(2**20 / 2) == "0.50 MiB"
    assert rate_text(1.5e6) == "1.50 M"
    assert rate_text(12) == "12.0"


def test_plain_table_aligns_without_rich():
    lines = plain_table("title", ["n", "name"], [False, True], [["1", "a"], [], ["20", "bc"]])
    assert lines.split("\n")[1:] == [
        "title",
        " n  name",
        "----------",
        " 1  a",
        "----------",
        "20  bc",
    ]


def test_markdown():
    assert markdown_table(["<a", "b"], [["1", "2"]]) == "| a | b |\n| --- | ---: |\n| 1 | 2 |"
