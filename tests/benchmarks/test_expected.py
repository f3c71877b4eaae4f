"""The cost model of the pair kernels: what it says is what the documents say."""

from __future__ import annotations

import pytest

from benchmarks import expected


def test_the_document_says_what_the_model_says():
    document = expected.DOCUMENT.read_text()
    assert expected.replaced(document) == document


def test_a_document_without_the_markers_is_an_error():
    with pytest.raises(ValueError, match="must contain"):
        expected.replaced("nothing")
